"""The mining core (paper, section 4): losses + boxes + groups -> indices. Knows torch and nothing of this package.

Ranking is in float32 whatever the input, since half precision ties thousands of distinct losses. Ties go to the lower
index, so a choice is the same on every run and device. A NaN ranks after every number: it is chosen only where nothing
else is left, and it is the caller's to report.

Shapes: R: RoIs or examples   k: how many to keep
"""

import torch
from torch import Tensor
from torchvision.ops import nms


def hard_examples(losses: Tensor, k: int) -> Tensor:
    """Indices of the `k` examples of highest loss.

    Args:
        losses: (R,) loss of each example, any floating dtype.
        k: how many to keep, at least 0.

    Returns:
        (min(k, R),) int64 indices, hardest first.

    Raises:
        ValueError: `losses` is not a vector, or `k` is negative.
    """
    _check(losses, k)
    return _hardest_first(losses)[:k]


def hard_rois(losses: Tensor, boxes: Tensor, groups: Tensor, k: int, nms_iou: float | None = 0.7) -> Tensor:
    """Indices of the `k` RoIs of highest loss after non-maximum suppression scored with the loss (paper, section 4.2).

    Neighbouring RoIs have the same loss for the same reason; suppression keeps the hardest of each neighbourhood, so
    that one mistake is not counted many times. A RoI is suppressed if its IoU with a harder kept one of its group is
    strictly above `nms_iou`.

    Args:
        losses: (R,) loss of each RoI, any floating dtype.
        boxes: (R, 4) float `[x1, y1, x2, y2]` in pixels.
        groups: (R,) integers; only RoIs of the same group suppress each other (the image, or image and label).
        k: how many to keep, at least 0.
        nms_iou: IoU above which a RoI is suppressed; None switches suppression off.

    Returns:
        (<= k,) int64 indices, hardest first; fewer than `k` where fewer survive.

    Raises:
        ValueError: the shapes do not agree, or `k` is negative.
    """
    _check(losses, k)
    if boxes.shape != (len(losses), 4) or groups.shape != losses.shape:
        raise ValueError(
            f"hard_rois needs losses (R,), boxes (R, 4) and groups (R,), "
            f"not {tuple(losses.shape)}, {tuple(boxes.shape)} and {tuple(groups.shape)}"
        )
    order = _hardest_first(losses)
    if nms_iou is not None and len(order) > 0:
        order = order[_first_survivors(boxes[order], groups[order], k, nms_iou)]
    return order[:k]


def _check(losses: Tensor, k: int) -> None:
    if losses.dim() != 1:
        raise ValueError(f"losses must be a vector (R,), not of shape {tuple(losses.shape)}")
    if k < 0:
        raise ValueError(f"k must be at least 0, not {k}")


def _hardest_first(losses: Tensor) -> Tensor:
    ranked = losses.detach().float()
    order = ranked.argsort(descending=True, stable=True)
    last = ranked[order].isnan()  # sorting puts them first
    return torch.cat([order[~last], order[last]])


def _first_survivors(boxes: Tensor, groups: Tensor, k: int, iou: float) -> Tensor:
    """Positions, ascending, of at least the first `k` that survive, or of all of them where there are fewer."""
    # Harder ones alone decide about each, and suppression takes time with the square of their number: for few of the
    # 100 000 anchors of a one-stage detector, most need not be looked at.
    size = max(4 * k, 1000)
    while size < len(boxes):
        kept = _survivors(boxes[:size], groups[:size], iou)
        if len(kept) >= k:
            return kept
        size *= 4
    return _survivors(boxes, groups, iou)


def _survivors(boxes: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Positions, ascending, that survive suppression of boxes given hardest first."""
    # Each group is moved to a place of its own, so that one call serves all; float64 keeps the move from rounding, and
    # numbering the groups keeps it small whatever integers they are.
    boxes = boxes.detach().double()
    span = boxes.max() - boxes.min() + 1
    place = torch.unique(groups, return_inverse=True)[1].double()
    apart = boxes + (place * span)[:, None]
    rank = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    kept: Tensor = nms(apart, rank, iou)
    return kept
