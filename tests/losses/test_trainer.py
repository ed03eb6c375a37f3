"""`OHEMLoss` in the trainer of transformers, which does not divide such a loss by the number of accumulated batches."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from ohem import OHEMLoss

CLASSES, IMAGES = 3, 8


class Tokens(nn.Module):
    """Classifies tokens: logits (N, T, C), as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(inputs)}


class Pixels(Tokens):
    """Segments: logits (N, C, H / 2, W / 2), as SegFormer and others of transformers do."""

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(inputs).movedim(-1, 1)}


def token_losses(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", **options)


def pixel_losses(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    full = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
    return functional.cross_entropy(full, labels, reduction="none", **options)


def examples(model: type[nn.Module], ignore: int) -> list[dict[str, Tensor]]:
    """Returns inputs and labels of which another number is ignored in each."""
    rng = torch.Generator().manual_seed(0)
    shape, size = ((6,), (6,)) if model is Tokens else ((3, 3), (6, 6))
    data = []
    for number in range(IMAGES):
        labels = torch.randint(0, CLASSES, size, generator=rng)
        labels.flatten()[: number % 5] = ignore
        data.append({"inputs": torch.randn(*shape, 4, generator=rng), "labels": labels})
    return data


class InOrder(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trained(folder: Path, loss: OHEMLoss, model: nn.Module, data: list[dict[str, Tensor]], batches: int) -> Tensor:
    """Returns the weights after a step of SGD on all of `data`, accumulated over `batches` mini-batches."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=IMAGES // batches,
        gradient_accumulation_steps=batches,
        max_steps=1,
        max_grad_norm=0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    InOrder(model, arguments, train_dataset=data, compute_loss_func=loss, optimizers=(optimizer, schedule)).train()
    return model.layer.weight.detach().clone()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("kind", "losses", "ignore"), [(Tokens, token_losses, -100), (Pixels, pixel_losses, 255)], ids=["tokens", "pixels"]
)
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_accumulated_step_is_the_mean_of_the_mini_batches(
    tmp_path: Path, kind: type[Tokens], losses: Any, ignore: int, keep: float
) -> None:
    """A mini-batch has the weight of its labels, counted as the trainer does: all but -100."""
    smooth = partial(losses, ignore_index=ignore, label_smoothing=0.1)
    data = examples(kind, ignore)
    torch.manual_seed(0)
    model = kind()
    start, bias = (value.detach().clone() for value in (model.layer.weight, model.layer.bias))
    expected = torch.zeros_like(start)
    labels = torch.stack([one["labels"] for one in data])
    for rows in torch.arange(IMAGES).chunk(4):
        logits = model(torch.stack([data[i]["inputs"] for i in rows]))["logits"]
        every = smooth(logits, labels[rows])[labels[rows] != ignore]
        hardest = every.topk(round(keep * len(every))).values.mean()
        weight = (labels[rows] != -100).sum() / (labels != -100).sum()
        expected += torch.autograd.grad(hardest * weight, model.layer.weight)[0]
    actual = trained(tmp_path, OHEMLoss(smooth, keep), model, data, 4) - start
    torch.testing.assert_close(-actual, expected)
    if keep == 1 and kind is Tokens:
        # Every label counts once, as in a single mini-batch of all examples.
        whole = kind()
        whole.load_state_dict(model.state_dict() | {"layer.weight": start, "layer.bias": bias})
        every = smooth(whole(torch.stack([one["inputs"] for one in data]))["logits"], labels)
        gradient = torch.autograd.grad(every.sum() / (labels != ignore).sum(), whole.layer.weight)[0]
        torch.testing.assert_close(-actual, gradient)
