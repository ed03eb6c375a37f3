"""The mining core (paper, section 4): losses + boxes + groups -> indices. It depends on no detector.

Losses are always ranked in float32, since half precision makes thousands of distinct losses equal. Of equal losses the
lower index wins, so that the choice is the same in every run and on every device. NaN ranks after all numbers: it is
chosen only where nothing else is left, and the caller must report it.

Shapes: R: RoIs or examples   k: number to keep   N: anchors of triplets   P: pool of negatives   D: features
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchvision.ops import nms

from ohem.boxes import check_boxes, pairwise_iou
from ohem.checks import check_integer, check_number, check_share, check_tensor, is_false

# The k hardest RoIs after NMS are first searched among FIRST * k: of real RoIs, NMS keeps half.
FIRST = 4


def hard_examples(losses: Tensor, k: int) -> Tensor:
    """Returns the indices of the `k` examples with the highest losses.

    Args:
        losses: (R,) loss of each example, any floating dtype.
        k: number to keep, at least 0.

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
    """Returns the indices of the `k` RoIs with the highest losses after NMS by loss (paper, section 4.2).

    Neighbouring RoIs have similar losses for the same reason. Non-maximum suppression (NMS) keeps the hardest of them,
    so that one mistake is not counted many times. A RoI is suppressed if its IoU with a harder kept RoI of its group is
    strictly above `nms_iou`.

    Args:
        losses: (R,) loss of each RoI, any floating dtype.
        boxes: (R, 4) float `[x1, y1, x2, y2]` in pixels, or (R, 6) `[x1, y1, z1, x2, y2, z2]` in voxels, finite.
        groups: (R,) integers; only RoIs of the same group suppress each other (the image, or image and label).
        k: number to keep, at least 0.
        nms_iou: IoU above which a RoI is suppressed; None or 1 switches NMS off.

    Returns:
        (<= k,) int64 indices, hardest first; fewer than `k` where NMS leaves fewer.

    Raises:
        TypeError: a tensor is of another dtype, or a number of another type.
        ValueError: the shapes do not agree, a number is out of range, or, on the CPU, a box is not finite.
    """
    _check(losses, k)
    check_boxes("boxes", boxes, "floating")
    check_tensor("boxes", boxes, (len(losses), boxes.shape[1]))
    check_tensor("groups", groups, (len(losses),), "integer" if len(losses) else None)
    if nms_iou is not None:
        check_share("nms_iou", nms_iou)
    if is_false(boxes.isfinite()):
        raise ValueError("boxes must be finite: some are NaN or infinite")
    if nms_iou is None or nms_iou == 1 or k == 0 or len(losses) == 0:
        return hard_examples(losses, k)
    # Whether NMS keeps a RoI depends on harder RoIs only: the hardest few decide, or a few more.
    size = max(FIRST * k, 64)
    while True:
        hardest = hard_examples(losses, size)
        kept = _survivors(_separate_groups(boxes[hardest], groups[hardest]), nms_iou, k)
        if len(kept) >= k or size >= len(losses):
            return hardest[kept[:k].to(hardest.device)]
        size *= 4


def triplet_losses(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float = 0.5) -> Tensor:
    """Returns the losses of triplets: max(0, distance to the positive - distance to the negative + margin).

    The distance is 1 - cosine, as Wang and Gupta (ICCV 2015, section 4.1) have it, whose hard negatives the paper
    describes in section 2.

    Args:
        anchors: (N, D) features, any floating dtype.
        positives: (N, D) features that must be near to those of the anchors.
        negatives: (N, K, D) features of K negatives of each anchor.
        margin: by how much a negative must be farther than the positive.

    Returns:
        (N, K) losses, with gradients.

    Raises:
        TypeError: a tensor is not floating, or `margin` is no number.
        ValueError: the shapes do not agree, or `margin` is not finite.
    """
    check_tensor("anchors", anchors, ("N", "D"), "floating")
    check_tensor("positives", positives, tuple(anchors.shape), "floating")
    check_tensor("negatives", negatives, (len(anchors), "K", anchors.shape[1]), "floating")
    check_number("margin", margin)
    near = cosine_similarity(anchors, positives, dim=1)
    return (cosine_similarity(anchors[:, None], negatives, dim=2) - near[:, None] + margin).clamp(min=0)


def hard_negatives(
    anchors: Tensor,
    positives: Tensor,
    pool: Tensor,
    k: int,
    allowed: Tensor | None = None,
    margin: float = 0.5,
) -> Tensor:
    """Returns, for each anchor, the indices of the `k` negatives of a pool with the highest triplet losses.

    Wang and Gupta (ICCV 2015, section 4.2) train on random negatives first, and then on the 4 of highest loss in the
    mini-batch; the paper names this in section 2. Losses are those of `triplet_losses`, in float32. Of equal losses the
    lower index wins, also of those that are 0. NaN and negatives that are not allowed are never chosen.

    Args:
        anchors: (N, D) features, any floating dtype.
        positives: (N, D) features, one positive for each anchor.
        pool: (P, D) features to choose negatives from, such as all of the mini-batch.
        k: number of negatives for each anchor, at least 0.
        allowed: (N, P) bool, False where the pool's example is no negative of the anchor; None: all are.
        margin: as for `triplet_losses`.

    Returns:
        (N, min(k, P)) int64 indices, hardest first; -1 where fewer are allowed.

    Raises:
        TypeError: a tensor is of another dtype, or a number of another type.
        ValueError: the shapes do not agree, or a number is out of range.
    """
    check_tensor("anchors", anchors, ("N", "D"), "floating")
    check_tensor("positives", positives, tuple(anchors.shape), "floating")
    check_tensor("pool", pool, ("P", anchors.shape[1]), "floating")
    check_integer("k", k)
    if allowed is not None:
        check_tensor("allowed", allowed, (len(anchors), len(pool)), "bool")
    every = pool.detach().float()[None].expand(len(anchors), -1, -1)
    losses = triplet_losses(anchors.detach().float(), positives.detach().float(), every, margin)
    excluded = losses.isnan() if allowed is None else losses.isnan() | ~allowed
    ordered, order = losses.masked_fill(excluded, -math.inf).sort(dim=1, descending=True, stable=True)
    return order.masked_fill(ordered == -math.inf, -1)[:, :k]


def exact(boxes: Tensor) -> Tensor:
    """Converts `boxes` to float64, on the CPU if they are on MPS, which does not have it."""
    return _off_mps(boxes).double()


def _off_mps(values: Tensor) -> Tensor:
    return values.cpu() if values.device.type == "mps" else values


def _check(losses: Tensor, k: int) -> None:
    check_tensor("losses", losses, ("R",), "floating")
    check_integer("k", k)


def _ranks(losses: Tensor) -> Tensor:
    """Returns distinct ranks (R,) int64, higher for harder RoIs; at equal losses the first is harder, NaN is lowest.

    One `topk` of the ranks is the choice: ties need no second sort, and the host needs no length from a GPU.
    """
    # As integers, the bits of floats have the same order; those of negative floats are reversed. -0.0 + 0.0 is 0.0.
    values = _off_mps(losses.detach()).float() + 0.0
    ranks = values.view(torch.int32).long()
    ranks ^= (ranks >> 63) & 0x7FFFFFFF
    ranks.masked_fill_(values.isnan(), 1 - 2**31)
    return ranks.mul_(2**32).sub_(torch.arange(len(ranks), device=ranks.device))


def _separate_groups(boxes: Tensor, groups: Tensor) -> Tensor:
    """Moves the boxes of each group to another place, (R, 4 or 6) float64, so that one NMS serves all groups."""
    # float64 keeps the move exact, and numbering the groups keeps it small for any integers.
    boxes = exact(boxes.detach())
    span = boxes.max() - boxes.min() + 1
    ordered, order = groups.to(boxes.device).sort()
    place = torch.zeros_like(order).scatter_(0, order[1:], (ordered.diff() != 0).cumsum(0))
    return boxes + (place.double() * span)[:, None]


def _survivors(boxes: Tensor, iou: float, k: int) -> Tensor:
    """Returns the positions, ascending, that NMS keeps of boxes given hardest first: at least the first `k` of them."""
    if boxes.shape[1] == 6:
        return _survivors_in_volume(boxes, iou, k)
    rank = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    kept: Tensor = nms(boxes, rank, iou)
    return kept


def _survivors_in_volume(boxes: Tensor, iou: float, k: int) -> Tensor:
    """Returns the first `k` positions, ascending, that NMS keeps of boxes (R, 6), which torchvision's cannot take."""
    kept: list[Tensor] = []
    left = torch.arange(len(boxes), device=boxes.device)
    while len(left) and len(kept) < k:
        kept.append(left[:1])
        # The IoU of two boxes without volume is NaN: neither suppresses the other, as in torchvision.
        left = left[1:][~(pairwise_iou(boxes[left[:1]], boxes[left[1:]])[0] > iou)]
    return torch.cat(kept)
