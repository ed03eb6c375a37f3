"""Trains torchvision's Faster R-CNN with mining in a Lightning module, and logs what was mined to TensorBoard.

python examples/lightning_module.py [--steps 6] [--logs FOLDER]     # then: tensorboard --logdir FOLDER
"""

import argparse
import tempfile
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from ohem import OHEMSampler, with_ohem
from ohem.data.synthetic import make_scenes
from ohem.data.voc import VOCDetection
from ohem.integrations.lightning import MiningCallback


class Detector(LightningModule):
    """A usual module of a detector. `with_ohem` is the only line that mining adds; the callback logs what was mined."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
        self.model = with_ohem(model, OHEMSampler(batch_size=128))  # RoIs per image

    def training_step(self, batch, batch_index):
        """Returns the loss, and logs all losses."""
        images, targets = batch
        losses = self.model([image / 255 for image in images], list(targets))
        self.log_dict(losses, batch_size=len(images))
        return sum(losses.values())

    def configure_optimizers(self):
        """Returns SGD, as in the paper."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def main(steps: int, logs: Path) -> dict[str, float]:
    """Trains for `steps` steps on generated images, and returns what the last step logged."""
    seed_everything(0, verbose=False)
    folder = Path(tempfile.gettempdir()) / "ohem-example-scenes"
    make_scenes(folder, train=16, test=1)
    data = VOCDetection(f"{folder}:trainval")
    loader = DataLoader(data, 2, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    logger = TensorBoardLogger(logs, name="detector")
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=logger,
        callbacks=[MiningCallback()],
        log_every_n_steps=1,
        enable_checkpointing=False,
    )
    trainer.fit(Detector(len(data.classes) + 1), loader)
    return {name: float(value) for name, value in trainer.logged_metrics.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="number of training steps")
    parser.add_argument("--logs", type=Path, default=Path("runs/lightning"), help="folder for TensorBoard")
    args = parser.parse_args()
    for name, value in main(args.steps, args.logs).items():
        print(f"{name:<20} {value:.4g}")
