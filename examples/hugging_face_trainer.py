"""Trains RT-DETR of transformers on mined queries, and a classifier on mined images, with the trainer of Hugging Face.

    python examples/hugging_face_trainer.py [FOLDER] [--steps 10] [--batch 4]

FOLDER is a data set in VOC layout. Without it, a few images are generated. It needs
`pip install "ohem[train]" transformers accelerate`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ohem import OHEMLoss, with_ohem
from ohem.data.synthetic import make_scenes
from ohem.data.voc import VOCDetection

SIZE = 256


class Scenes(torch.utils.data.Dataset):
    """The examples that the models of transformers take: `pixel_values` (3, H, W) and `labels`."""

    def __init__(self, source: str) -> None:
        self.data = VOCDetection(source)
        self.classes = self.data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, target = self.data[index]
        _, height, width = image.shape
        pixels = functional.interpolate(image[None] / 255, size=(SIZE, SIZE), mode="bilinear")[0]
        boxes = box_convert(target["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
        # Labels of RT-DETR start at 0. The mined queries and the denoising queries leave out what `ignore` marks.
        labels = {"class_labels": target["labels"] - 1, "boxes": boxes, "ignore": target["ignore"]}
        return {"pixel_values": pixels, "labels": labels}


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": [example["labels"] for example in examples]}


def collate_largest(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Labels an image with the class of its largest object."""
    batch = collate(examples)
    largest = [label["class_labels"][label["boxes"][:, 2:].prod(dim=1).argmax()] for label in batch["labels"]]
    return {"pixel_values": batch["pixel_values"], "labels": torch.stack(largest)}


class PrintMining(TrainerCallback):
    """Prints what was mined whenever the trainer logs. Loggers can take `model.mining.statistics()` in the same way."""

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **_: Any) -> None:
        mined = model.mining.statistics()
        if mined and "loss" in logs:
            print(
                f"step {state.global_step}: loss {float(logs['loss']):.2f}; {mined['chosen']:.0f} of "
                f"{mined['rois']:.0f} queries chosen, mean loss {mined['loss_chosen']:.2f} "
                f"(all queries: {mined['loss_all']:.2f})"
            )


def arguments(folder: Path, steps: int, batch: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-4,
        max_grad_norm=0.1,
        logging_steps=max(steps // 5, 1),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )


def train_detector(data: Scenes, folder: Path, steps: int, batch: int) -> RTDetrForObjectDetection:
    """Trains a small RT-DETR. `with_ohem` is the only line that mining adds."""
    backbone = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    # `RTDetrForObjectDetection.from_pretrained(...)` downloads weights: use it for a real training.
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[32, 64, 128],
        d_model=64,
        encoder_hidden_dim=64,
        decoder_in_channels=[64, 64, 64],
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=3,
        num_queries=100,
        num_labels=len(data.classes),
    )
    model = with_ohem(RTDetrForObjectDetection(config))
    Trainer(
        model,
        arguments(folder, steps, batch),
        train_dataset=data,
        data_collator=collate,
        callbacks=[PrintMining()],
    ).train()
    print(model.mining)  # of the last decoder layer; a RoI of these statistics is a query
    return model


def train_classifier(data: Scenes, folder: Path, steps: int, batch: int) -> OHEMLoss:
    """Trains a small ResNet on the half of the images that has the highest loss."""
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=len(data.classes)
    )
    # The trainer does not use its `label_smoothing_factor` with `compute_loss_func`: the criterion smooths.
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), keep=0.5)
    Trainer(
        ResNetForImageClassification(config),
        arguments(folder, steps, batch),
        train_dataset=data,
        data_collator=collate_largest,
        compute_loss_func=loss,
    ).train()
    print("images kept, mean loss:", loss.mining)
    return loss


def main(folder: Path | None = None, steps: int = 10, batch: int = 4) -> tuple[RTDetrForObjectDetection, OHEMLoss]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            folder = Path(place) / "scenes"
            make_scenes(folder, train=8, test=1)
        data = Scenes(f"{folder}:trainval")
        model = train_detector(data, Path(place), steps, batch)
        return model, train_classifier(data, Path(place), steps, batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="data set in VOC layout; default: generated images")
    parser.add_argument("--steps", type=int, default=10, help="number of training steps")
    parser.add_argument("--batch", type=int, default=4, help="number of images per mini-batch")
    args = parser.parse_args()
    main(args.folder, args.steps, args.batch)
