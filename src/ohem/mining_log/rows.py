"""The rows of the mining log: one for each chosen RoI, as float64 columns.

Shapes: B: chosen RoIs   I: images of the steps at hand   G: objects of an image   M: kept rows
C: columns
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ohem.boxes import pairwise_iou
from ohem.checks import check_number, check_optional, check_tensor, check_type, describe

COLUMNS: dict[str, str] = {
    "step": "number of the step, from 1",
    "image": "name of the image",
    "placed": "1 if the sides of the RoI are in pixels of the picture, 0 if in those of the network's input",
    "x1": "left side of the RoI",
    "y1": "top",
    "x2": "right side",
    "y2": "bottom",
    "label": "0 background, 1..K the class",
    "loss": "loss as used for the ranking; NaN if the sampler does not use losses",
    "iou": "highest IoU with an object",
    "object": "index of the object of the image that a foreground RoI overlaps most; -1 for background, or not known",
    "taken_for": "the most probable wrong label when the RoI was trained on; -1 if not known",
    "taken_score": "probability of that label; NaN if not known",
}
"""Columns of rows.parquet, and what they mean."""
WHOLE = ("step", "image", "placed", "label", "object", "taken_for")
"""Columns of whole numbers; `image` is a number until the table is written."""
STEP, IMAGE, PLACED, BOX, LABEL, LOSS, IOU, OBJECT, TAKEN = map(
    list(COLUMNS).index, ("step", "image", "placed", "x1", "label", "loss", "iou", "object", "taken_for")
)
PERIODS = 64
"""Highest number of periods of a training. Their length in steps doubles when there are more."""


@dataclass(frozen=True)
class LoggedImage:
    """An image of a mini-batch, and where its RoIs are in the picture.

    Raises:
        TypeError, ValueError: a value is of another type, or out of range.
    """

    name: str
    boxes: Tensor | None = None
    """(G, 4) objects in pixels of the RoIs, or None. Without them, chosen RoIs are not counted by object."""
    scale: tuple[float, float] | None = None
    """Pixels of the RoIs per pixel of the picture, along x and y, or None if that is not known (a mosaic)."""
    mirrored_width: float | None = None
    """Width of the picture in its own pixels if the image is mirrored, else None."""

    def __post_init__(self) -> None:
        check_type("name", self.name, str)
        check_optional(check_tensor, "boxes", self.boxes, ("G", 4))
        check_optional(_check_scale, "scale", self.scale)
        check_optional(check_number, "mirrored_width", self.mirrored_width, 0)


def _check_scale(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers (x, y), not {describe(value)}")
    for number in value:
        check_number(name, number, 1e-9)


@dataclass
class Step:
    """What was chosen in a mini-batch."""

    number: int
    images: Sequence[LoggedImage]
    minable: int | Tensor
    """Number of RoIs that could be chosen."""
    chosen: Tensor
    """(B, 8): place of the image in the mini-batch, label, loss, IoU, x1, y1, x2, y2."""
    taken: Tensor | None = None
    """(B, 2): the most probable wrong label, and its probability."""


def make_rows(steps: Sequence[Step], numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Makes the rows of some steps.

    Args:
        steps: the steps.
        numbers: (I,) int64, number in the log of each image of each step.

    Returns:
        (B, C) float64 rows, and (B,) int64, the place of each in `numbers`.
    """
    images = [image for step in steps for image in step.images]
    chosen = torch.cat([step.chosen for step in steps]).cpu().double()
    counts = torch.tensor([len(step.chosen) for step in steps])
    first = torch.tensor([len(step.images) for step in steps])
    place = chosen[:, 0].long() + (first.cumsum(0) - first).repeat_interleave(counts)
    taken = [step.chosen.new_tensor([-1, torch.nan]).expand(len(step.chosen), 2) for step in steps]
    taken = [rows if step.taken is None else step.taken for step, rows in zip(steps, taken, strict=True)]
    rows = torch.empty(len(chosen), len(COLUMNS), dtype=torch.float64)
    rows[:, STEP] = torch.tensor([step.number for step in steps]).repeat_interleave(counts).double()
    rows[:, IMAGE] = numbers[place].double()
    rows[:, PLACED] = torch.tensor([float(image.scale is not None) for image in images])[place].double()
    rows[:, BOX : BOX + 4] = _in_picture(chosen[:, 4:], place, images)
    rows[:, LABEL], rows[:, LOSS], rows[:, IOU] = chosen[:, 1], chosen[:, 2], chosen[:, 3]
    rows[:, OBJECT] = _objects(chosen[:, 4:], place, chosen[:, 1] > 0, images).double()
    rows[:, TAKEN : TAKEN + 2] = torch.cat(taken).cpu().double()
    return rows, place


def most_probable_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns (B, 2): of scores (B, K + 1) before the softmax, the best that is not of `labels` (B,); probability."""
    probabilities = scores.detach().float().softmax(dim=1)
    right = torch.arange(len(labels), device=labels.device), labels
    best = probabilities.index_put(right, probabilities.new_tensor(-1.0)).max(dim=1)
    return torch.stack([best.indices.to(probabilities), best.values], dim=1)


def newest_and_hardest(rows: Tensor, size: int, period: int) -> Tensor:
    """Returns the newest `size` of rows (M, C), the hardest `size` of all, and the hardest of each period, in order.

    Args:
        rows: in the order of their steps.
        size: number of rows of each of the three kinds; a period has an equal share.
        period: length of a period, in steps.
    """
    if len(rows) <= size:
        return rows
    losses = rows[:, LOSS].nan_to_num(nan=-torch.inf, posinf=torch.inf)
    kept = torch.zeros(len(rows), dtype=torch.bool)
    kept[-size:] = True
    by_loss = losses.argsort(descending=True, stable=True)
    by_loss = by_loss[losses[by_loss] > -torch.inf]
    kept[by_loss[:size]] = True
    periods = ((rows[by_loss, STEP] - 1) // period).long()
    by_period = periods.argsort(stable=True)
    counts = torch.bincount(periods)
    rank = torch.arange(len(by_loss)) - (counts.cumsum(0) - counts)[periods[by_period]]
    kept[by_loss[by_period[rank < size // PERIODS]]] = True
    return rows[kept]


def _in_picture(boxes: Tensor, place: Tensor, images: Sequence[LoggedImage]) -> Tensor:
    """Returns boxes (B, 4) of the images `place` (B,) in pixels of the pictures."""
    scales = torch.tensor([(image.scale or (1.0, 1.0)) * 2 for image in images], dtype=torch.float64)[place]
    widths = [torch.nan if image.mirrored_width is None else image.mirrored_width for image in images]
    width = torch.tensor(widths, dtype=torch.float64)[place]
    x1, y1, x2, y2 = (boxes / scales).unbind(1)
    mirrored = ~width.isnan()
    return torch.stack([torch.where(mirrored, width - x2, x1), y1, torch.where(mirrored, width - x1, x2), y2], dim=1)


def _objects(boxes: Tensor, place: Tensor, foreground: Tensor, images: Sequence[LoggedImage]) -> Tensor:
    """Returns the index (B,) of the object that each foreground RoI overlaps most, in its image; -1 for others."""
    objects = [boxes.new_zeros(0, 4) if image.boxes is None else image.boxes for image in images]
    sizes = torch.tensor([len(of_image) for of_image in objects])
    result = torch.full((len(boxes),), -1)
    if sizes.any() and foreground.any():
        all_objects = torch.cat([of_image.detach().to("cpu", torch.float64) for of_image in objects])
        here = place[foreground]
        overlaps = pairwise_iou(boxes[foreground], all_objects)
        overlaps[torch.arange(len(images)).repeat_interleave(sizes) != here[:, None]] = -1
        highest, best = overlaps.max(dim=1)
        result[foreground] = torch.where(highest < 0, -1, best - (sizes.cumsum(0) - sizes)[here])
    return result
