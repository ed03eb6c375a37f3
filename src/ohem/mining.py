"""The mining core (paper, section 4): losses + boxes + groups -> indices. Knows torch, and no detector.

Ranking is in float32 whatever the input, since half precision ties thousands of distinct losses. Ties go to the lower
index, so a choice is the same on every run and device. A NaN ranks after every number: it is chosen only where nothing
else is left, and it is the caller's to report.

Shapes: R: RoIs or examples   k: how many to keep
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from ohem.checks import check_integer, check_share, check_tensor, is_false

# RoIs among which the k hardest survivors are looked for first, in units of k: of real ones, half survive.
FIRST = 4


def hard_examples(losses: Tensor, k: int) -> Tensor:
    """Indices of the `k` examples of highest loss.

    Args:
        losses: (R,) loss of each example, any floating dtype.
        k: how many to keep, at least 0.

    Returns:
        (min(k, R),) int64 indices, hardest first.

    Raises:
        TypeError: `losses` is not a floating tensor, or `k` is not an integer.
        ValueError: `losses` is not a vector, or `k` is negative.
    """
    _check(losses, k)
    order = _ranks(losses).topk(min(k, len(losses))).indices
    return order.to(losses.device)


def hard_rois(losses: Tensor, boxes: Tensor, groups: Tensor, k: int, nms_iou: float | None = 0.7) -> Tensor:
    """Indices of the `k` RoIs of highest loss after non-maximum suppression scored with the loss (paper, section 4.2).

    Neighbouring RoIs have the same loss for the same reason; suppression keeps the hardest of each neighbourhood, so
    that one mistake is not counted many times. A RoI is suppressed if its IoU with a harder kept one of its group is
    strictly above `nms_iou`.

    Args:
        losses: (R,) loss of each RoI, any floating dtype.
        boxes: (R, 4) float `[x1, y1, x2, y2]` in pixels, finite.
        groups: (R,) integers; only RoIs of the same group suppress each other (the image, or image and label).
        k: how many to keep, at least 0.
        nms_iou: IoU above which a RoI is suppressed; None switches suppression off.

    Returns:
        (<= k,) int64 indices, hardest first; fewer than `k` where fewer survive.

    Raises:
        TypeError: a tensor is of another dtype, or a number of another type.
        ValueError: the shapes do not agree, a number is out of range, or, on the CPU, a box is not finite.
    """
    _check(losses, k)
    check_tensor("boxes", boxes, (len(losses), 4), "floating")
    check_tensor("groups", groups, (len(losses),), "integer" if len(losses) else None)
    if nms_iou is not None:
        check_share("nms_iou", nms_iou)
    if is_false(boxes.isfinite()):
        raise ValueError("boxes must be finite: some are NaN or infinite")
    if nms_iou is None or k == 0 or len(losses) == 0:
        return hard_examples(losses, k)
    # Whether a RoI survives depends on harder ones alone: the hardest few settle who the k are, or a few more.
    size = max(FIRST * k, 64)
    while True:
        hardest = hard_examples(losses, size)
        kept = _survivors(_apart(boxes[hardest], groups[hardest]), nms_iou)
        if len(kept) >= k or size >= len(losses):
            return hardest[kept[:k].to(hardest.device)]
        size *= 4


def exact(boxes: Tensor) -> Tensor:
    """`boxes` in float64: on the CPU if they are on MPS, which has none."""
    return _off_mps(boxes).double()


def _off_mps(values: Tensor) -> Tensor:
    return values.cpu() if values.device.type == "mps" else values


def _check(losses: Tensor, k: int) -> None:
    check_tensor("losses", losses, ("R",), "floating")
    check_integer("k", k)


def _ranks(losses: Tensor) -> Tensor:
    """(R,) int64, distinct: the higher, the harder; the lower of two indices, of the same loss; NaN below all numbers.

    One `topk` of these is the choice: no second sort for ties, and no length that a GPU would have to tell the host.
    """
    # The bits of floats are ordered as they are, of negative ones the other way round. -0.0 + 0.0 is 0.0.
    values = _off_mps(losses.detach()).float() + 0.0
    ranks = values.view(torch.int32).long()
    ranks ^= (ranks >> 63) & 0x7FFFFFFF
    ranks.masked_fill_(values.isnan(), 1 - 2**31)
    return ranks.mul_(2**32).sub_(torch.arange(len(ranks), device=ranks.device))


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """The boxes, (R, 4) float64, each group moved to a place of its own, so that one NMS serves all."""
    # float64 keeps the move from rounding, and numbering the groups keeps it small whatever integers they are.
    boxes = exact(boxes.detach())
    span = boxes.max() - boxes.min() + 1
    ordered, order = groups.to(boxes.device).sort()
    place = torch.zeros_like(order).scatter_(0, order[1:], (ordered.diff() != 0).cumsum(0))
    return boxes + (place.double() * span)[:, None]


def _survivors(boxes: Tensor, iou: float) -> Tensor:
    """Positions, ascending, that survive suppression of boxes given hardest first."""
    rank = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    kept: Tensor = nms(boxes, rank, iou)
    return kept
