"""Checks and reads the ground truth of a mini-batch, as it is given to detectors in training.

Shapes: G: objects of an image
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ohem.checks import check_mapping, check_sequence, check_tensor, describe, is_false

MARKS = ("ignore", "iscrowd")
"""Keys of a target that mark objects to ignore; the first that is given counts."""


def read_targets(
    targets: Any, count: int | None = None, *, first_class: int = 1, num_classes: int | None = None
) -> list[dict[str, Any]]:
    """Returns the targets with boxes of floating dtype (G, 4), labels (G,) int64 and marks (G,) bool; the rest is kept.

    Usual forms with one meaning are accepted: integer dtypes, labels and marks of any shape where an image has no
    object, marks that are a list or of shape (G, 1), empty marks where nothing is marked.

    Args:
        targets: per image `boxes`, `labels` and, optionally, `ignore` or `iscrowd`.
        count: number of images; None: any.
        first_class: lowest label of an object.
        num_classes: number of labels, background counted; None: not known.

    Raises:
        TypeError: a value is of another type or dtype.
        ValueError: a key is missing, shapes do not agree or, on the CPU, a box has no area or is not finite, or a label
            is out of range.
    """
    check_sequence("targets", targets, "dicts, one per image")
    if count is not None and len(targets) != count:
        raise ValueError(f"targets must be as many as the images, {count}, not {len(targets)}")
    highest = None if num_classes is None else num_classes - 1
    return [_read(target, f"targets[{i}]", first_class, highest) for i, target in enumerate(targets)]


def ignored(target: Mapping[str, Any], name: str = "target") -> Tensor:
    """Returns (G,) bool: the objects that `target["ignore"]` marks, or else COCO's `target["iscrowd"]`.

    Args:
        target: `boxes` (G, 4) and, optionally, either of the two: bool, 0 or 1 for each object.
        name: name of the target in messages.

    Raises:
        TypeError, ValueError: the marks are of another type, number or value.
    """
    boxes = target["boxes"]
    for key in MARKS:
        if target.get(key) is not None:
            return _marks(target[key], boxes, f"{name}[{key!r}]")
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)


def _read(target: Any, name: str, lowest: int, highest: int | None) -> dict[str, Any]:
    check_mapping(name, target, ("boxes", "labels"))
    boxes = _boxes(target["boxes"], f"{name}['boxes']")
    read = {**target, "boxes": boxes, "labels": _labels(target["labels"], boxes, f"{name}['labels']")}
    for key in MARKS:
        if target.get(key) is not None:
            read[key] = _marks(target[key], boxes, f"{name}[{key!r}]")
    used = ~ignored(read)
    _check_area(boxes, used, f"{name}['boxes']")
    _check_range(read["labels"] if not is_false(used) else read["labels"][used], f"{name}['labels']", lowest, highest)
    return read


def _check_area(boxes: Tensor, used: Tensor, name: str) -> None:
    """Raises `ValueError` where a box is inverted, or has no area although it is not ignored."""
    if is_false(boxes.isfinite()):
        raise ValueError(f"{name} must be finite: some are NaN or infinite")
    right = (boxes[:, 2:] > boxes[:, :2]) | ((boxes[:, 2:] == boxes[:, :2]) & ~used[:, None])
    if is_false(right):
        wrong = boxes[~right.all(dim=1)][0].tolist()
        raise ValueError(f"{name} must be [x1, y1, x2, y2] with x2 > x1 and y2 > y1, not {wrong}: correct or drop it")


def _check_range(used: Tensor, name: str, lowest: int, highest: int | None) -> None:
    if is_false((used >= lowest) & (used <= (used if highest is None else highest))):
        wanted = f"{lowest} or more" if highest is None else f"from {lowest} to {highest}"
        outside = sorted({n for n in used.tolist() if n < lowest or (highest is not None and n > highest)})
        remedy = "; 0 is the background" if lowest == 1 and 0 in outside else ""
        raise ValueError(f"{name} must be {wanted}, not {', '.join(map(str, outside[:3]))}{remedy}")


def _boxes(boxes: Any, name: str) -> Tensor:
    if isinstance(boxes, Tensor) and boxes.shape == (0,):
        boxes = boxes.reshape(0, 4)
    check_tensor(name, boxes, ("G", 4))
    if boxes.dtype == torch.bool:
        raise TypeError(f"{name} must be numbers, not {describe(boxes)}")
    return boxes if boxes.is_floating_point() else boxes.float()  # type: ignore[no-any-return]


def _labels(labels: Any, boxes: Tensor, name: str) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor, not {describe(labels)}")
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    check_tensor(name, labels, labels.shape, "integer")
    if labels.shape != (len(boxes),):
        raise ValueError(f"{name} must be of shape ({len(boxes)},), as many as the boxes, not {tuple(labels.shape)}")
    if labels.device != boxes.device:
        raise ValueError(f"{name} must be on the device of the boxes, {boxes.device}, not {labels.device}")
    return labels.long()


def _marks(marks: Any, boxes: Tensor, name: str) -> Tensor:
    """Returns (G,) bool on the device of the boxes, nothing marked where `marks` are empty."""
    try:
        values = torch.as_tensor(marks, device=boxes.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a bool, 0 or 1 for each object, not {describe(marks)}") from None
    if len(boxes) == 0 or values.numel() == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if values.numel() != len(boxes) or values.dim() > 2:
        raise ValueError(f"{name} must be of shape ({len(boxes)},), as many as the boxes, not {tuple(values.shape)}")
    if values.dtype != torch.bool and is_false((values == 0) | (values == 1)):
        raise ValueError(f"{name} must be a bool, 0 or 1 for each object, not {values.flatten().tolist()[:5]}")
    return values.bool().flatten()
