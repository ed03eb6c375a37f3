"""Box coding and clipping (Girshick et al., R-CNN, 2014, appendix C). IoU and NMS are those of `torchvision.ops`.

Boxes are `[x1, y1, x2, y2]` in pixels with an exclusive end, so that a width is `x2 - x1`. The authors' code has
inclusive ends and widths `x2 - x1 + 1`; `from_inclusive` converts their boxes, which accounts for each "+ 1".
Boxes of volumes, `[x1, y1, z1, x2, y2, z2]` in voxels, have an area, an intersection and an IoU too.

Shapes: R: boxes   K: foreground classes
"""

import math

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from ohem.checks import Kind, check_size, check_tensor

# Log of the highest factor of a regression, so that `exp` of an untrained network cannot overflow.
MAX_LOG_SCALE = math.log(1000.0 / 16)
# Pairs of boxes whose IoU is in memory at the same time, since an image may have 100 000 sliding windows.
MOST_PAIRS = 2**22


def from_inclusive(boxes: Tensor) -> Tensor:
    """Converts boxes (..., 4) with an inclusive last pixel, as the authors', to boxes with an exclusive end."""
    check_tensor("boxes", boxes, ("...", 4))
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def encode(boxes: Tensor, targets: Tensor) -> Tensor:
    """Computes the regression targets that transform `boxes` into `targets`.

    Args:
        boxes: (R, 4) proposals, with area.
        targets: (R, 4) the ground-truth boxes matched to them, with area.

    Returns:
        (R, 4) `(dx, dy, dw, dh)`, shift of the centre in units of the size of the proposal, and log ratio of the sizes.
    """
    check_tensor("boxes", boxes, ("...", 4))
    check_tensor("targets", targets, boxes.shape)
    centre, size = _centre_size(boxes)
    target_centre, target_size = _centre_size(targets)
    return torch.cat([(target_centre - centre) / size, torch.log(target_size / size)], dim=-1)


def decode(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Applies regressions to boxes: the inverse of `encode`.

    Args:
        boxes: (R, 4) proposals.
        deltas: (R, ..., 4) regressions, one for each box or one for each class.

    Returns:
        (R, ..., 4) boxes, not clipped.
    """
    check_tensor("boxes", boxes, ("R", 4))
    check_tensor("deltas", deltas, ("...", 4))
    if deltas.dim() < 2 or len(deltas) != len(boxes):
        raise ValueError(f"deltas must be of shape ({len(boxes)}, ..., 4), not {tuple(deltas.shape)}")
    boxes = boxes.reshape(boxes.shape[0], *[1] * (deltas.dim() - 2), 4)
    centre, size = _centre_size(boxes)
    centre = centre + deltas[..., :2] * size
    half = 0.5 * size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clips boxes (..., 4) to an image of `size` (height, width) in pixels."""
    check_tensor("boxes", boxes, ("...", 4))
    check_size("size", size)
    height, width = size
    upper = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(upper)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Computes the areas (A, B) in square pixels that boxes `a` (A, 4) and `b` (B, 4) share; of (A, 6), the volumes."""
    check_boxes("a", a)
    check_tensor("b", b, ("B", a.shape[1]))
    half = a.shape[1] // 2
    sides = torch.minimum(a[:, None, half:], b[:, half:]) - torch.maximum(a[:, None, :half], b[:, :half])
    return sides.clamp(min=0).prod(dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Computes the areas (R,) of boxes (R, 4) in square pixels, or the volumes of boxes (R, 6)."""
    half = boxes.shape[1] // 2
    return box_area(boxes) if half == 2 else (boxes[:, half:] - boxes[:, :half]).prod(dim=1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Computes the IoU (A, B) of boxes `a` (A, 4) and `b` (B, 4), or (A, 6) and (B, 6)."""
    if a.shape[1] == 4:
        return box_iou(a, b)  # type: ignore[no-any-return]
    shared = intersection(a, b)
    return shared / (area(a)[:, None] + area(b) - shared)


def check_boxes(name: str, boxes: Tensor, kind: Kind | None = None) -> None:
    """Raises `TypeError` or `ValueError` if `boxes` are neither (R, 4) nor (R, 6)."""
    flat = not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != 6
    check_tensor(name, boxes, ("R", 4 if flat else 6), kind)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
