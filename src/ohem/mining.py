"""The mining core (paper, section 4): losses + boxes + groups -> indices. Knows torch and nothing of this package.

Ranking is in float32 whatever the input, since half precision ties thousands of distinct losses. Ties go to the lower
index, so a choice is the same on every run and device. A NaN ranks after every number: it is chosen only where nothing
else is left, and it is the caller's to report.

Shapes: R: RoIs or examples   k: how many to keep
"""

import torch
from torch import Tensor
from torchvision.ops import nms

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
        ValueError: `losses` is not a vector, or `k` is negative.
    """
    _check(losses, k)
    ranked = losses.detach().float()
    if not 0 < k < len(ranked):
        return _hardest_first(ranked)[:k]
    # Selecting is several times as fast as sorting: only what is no easier than the k-th hardest is sorted.
    known = torch.where(ranked.isnan(), -torch.inf, ranked)
    among = (known >= known.topk(k, sorted=False).values.min()).nonzero().squeeze(1)
    return among[_hardest_first(ranked[among])[:k]]


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
        ValueError: the shapes do not agree, or `k` is negative.
    """
    _check(losses, k)
    if boxes.shape != (len(losses), 4) or groups.shape != losses.shape:
        raise ValueError(
            f"hard_rois needs losses (R,), boxes (R, 4) and groups (R,), "
            f"not {tuple(losses.shape)}, {tuple(boxes.shape)} and {tuple(groups.shape)}"
        )
    if nms_iou is None or k == 0 or len(losses) == 0:
        return hard_examples(losses, k)
    apart = _apart(boxes, groups)
    # Whether a RoI survives depends on harder ones alone: the hardest few settle who the k are, or a few more.
    size = max(FIRST * k, 64)
    while True:
        hardest = hard_examples(losses, size).to(apart.device)
        kept = _survivors(apart[hardest], nms_iou)
        if len(kept) >= k or size >= len(losses):
            return hardest[kept[:k]].to(losses.device)
        size *= 4


def exact(boxes: Tensor) -> Tensor:
    """`boxes` in float64: on the CPU if they are on MPS, which has none."""
    return (boxes.cpu() if boxes.device.type == "mps" else boxes).double()


def _check(losses: Tensor, k: int) -> None:
    if losses.dim() != 1:
        raise ValueError(f"losses must be a vector (R,), not of shape {tuple(losses.shape)}")
    if k < 0:
        raise ValueError(f"k must be at least 0, not {k}")


def _hardest_first(ranked: Tensor) -> Tensor:
    order = ranked.argsort(descending=True, stable=True)
    last = ranked[order].isnan()  # sorting puts them first
    return torch.cat([order[~last], order[last]])


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """The boxes, (R, 4) float64, each group moved to a place of its own, so that one NMS serves all."""
    # float64 keeps the move from rounding, and numbering the groups keeps it small whatever integers they are.
    boxes = exact(boxes.detach())
    span = boxes.max() - boxes.min() + 1
    place: Tensor = torch.unique(groups.to(boxes.device), return_inverse=True)[1]
    return boxes + (place.double() * span)[:, None]


def _survivors(boxes: Tensor, iou: float) -> Tensor:
    """Positions, ascending, that survive suppression of boxes given hardest first."""
    rank = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    kept: Tensor = nms(boxes, rank, iou)
    return kept
