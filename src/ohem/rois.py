"""Regions of interest and their labels (paper, section 3.1): proposals matched with the ground truth.

Shapes: R: RoIs of the mini-batch   N: images   P, G: proposals, ground-truth boxes of one image   K: foreground classes
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from ohem.boxes import encode, intersection

BACKGROUND = 0
IGNORE = -1
# Regression targets are divided by these by default (py-faster-rcnn's precomputed normalisation).
BOX_MEAN = (0.0, 0.0, 0.0, 0.0)
BOX_STD = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class RoIs:
    """Labelled RoIs of a mini-batch, one row each."""

    boxes: Tensor
    """(R, 4) float32 `[x1, y1, x2, y2]`, pixels of the (resized) image."""
    images: Tensor
    """(R,) int64, which image of the mini-batch."""
    labels: Tensor
    """(R,) int64: 0 background, 1..K foreground, -1 ignored (neither trained on nor mined)."""
    targets: Tensor
    """(R, 4) float32 normalised regression targets, zero where not foreground."""
    ious: Tensor
    """(R,) float32, highest IoU with a ground-truth box that is not ignored."""
    num_images: int
    """N, also counting images without a RoI."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> "RoIs":
        """The RoIs at `index`: int64 indices or a boolean mask."""
        return RoIs(
            self.boxes[index],
            self.images[index],
            self.labels[index],
            self.targets[index],
            self.ious[index],
            self.num_images,
        )

    @property
    def foreground(self) -> Tensor:
        """(R,) bool."""
        return self.labels > BACKGROUND


def match(
    proposals: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    *,
    mean: Tensor | Sequence[float] = BOX_MEAN,
    std: Tensor | Sequence[float] = BOX_STD,
    fg_iou: float = 0.5,
    add_ground_truth: bool = True,
) -> RoIs:
    """Labels every proposal of a mini-batch and gives it its regression target.

    A RoI is foreground, with the label of the ground-truth box it overlaps most, if that IoU is at least `fg_iou`.
    Of the others, those that share at least half of their own or of an ignored region's area are labelled -1: training
    them as background would mine unannotated objects first. The rest is background.

    Args:
        proposals: per image (P, 4) float boxes.
        targets: per image a dict of `boxes` (G, 4), `labels` (G,) int64 in 1..K and, optionally, `ignore` (G,) bool
            (difficult objects, crowds).
        mean, std: normalisation of the regression targets, (4,) for all classes or (K + 1, 4) per class.
        fg_iou: lowest IoU of a foreground RoI.
        add_ground_truth: put the ground-truth boxes before the proposals, as the authors do.

    Raises:
        ValueError: there are not as many targets as proposals, or none at all.
    """
    if len(proposals) != len(targets):
        raise ValueError(f"match needs one target per image, not {len(targets)} for {len(proposals)}")
    if len(proposals) == 0:
        raise ValueError("match needs at least one image")
    parts = [_match_image(p, t, fg_iou, add_ground_truth) for p, t in zip(proposals, targets, strict=True)]
    boxes, labels, deltas, ious = (torch.cat(column) for column in zip(*parts, strict=True))
    images = torch.cat([torch.full((len(p[0]),), i, device=boxes.device) for i, p in enumerate(parts)])
    mean, std = (torch.as_tensor(v, dtype=deltas.dtype, device=deltas.device) for v in (mean, std))
    if mean.dim() == 2:
        mean, std = mean[labels.clamp(min=0)], std[labels.clamp(min=0)]
    normalised = torch.where((labels > BACKGROUND)[:, None], (deltas - mean) / std, 0)
    return RoIs(boxes, images, labels, normalised, ious, len(proposals))


def target_statistics(rois: Iterable[RoIs], num_classes: int) -> tuple[Tensor, Tensor]:
    """Empirical mean and standard deviation of the regression targets over foreground RoIs: the authors' normalisation.

    Args:
        rois: mini-batches matched with mean 0 and std 1.
        num_classes: K + 1.

    Returns:
        mean, std (K + 1, 4) float32, on the CPU; 0 and 1 for a class without a foreground RoI, and for background.
    """
    count = torch.zeros(num_classes, 1, dtype=torch.float64)
    total, squares = (torch.zeros(num_classes, 4, dtype=torch.float64) for _ in range(2))
    for batch in rois:
        chosen = batch[batch.foreground]
        labels, values = chosen.labels.cpu(), chosen.targets.cpu().double()
        count.index_add_(0, labels, torch.ones(len(chosen), 1, dtype=torch.float64))
        total.index_add_(0, labels, values)
        squares.index_add_(0, labels, values**2)
    mean = total / count.clamp(min=1)
    std = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
    # One lone RoI has no spread but for rounding; dividing by it would make the targets of others huge.
    return mean.float(), torch.where(std > 1e-6, std, 1).float()


def _match_image(
    proposals: Tensor, target: Mapping[str, Tensor], fg_iou: float, add_ground_truth: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes (R, 4), labels (R,), raw regression targets (R, 4) and highest IoU (R,) of one image."""
    ignore = ignored(target)
    truth, truth_labels, regions = target["boxes"][~ignore], target["labels"][~ignore], target["boxes"][ignore]
    boxes = torch.cat([truth, proposals]) if add_ground_truth else proposals
    iou, matched = highest_iou(boxes, truth)
    ignored_iou, _ = highest_iou(boxes, regions)
    foreground = (iou >= fg_iou) & (iou >= ignored_iou)

    labels = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    labels[covers(boxes, regions)] = IGNORE
    deltas = torch.zeros_like(boxes)
    if len(truth):
        labels = torch.where(foreground, truth_labels[matched], labels)
        deltas[foreground] = encode(boxes[foreground], truth[matched[foreground]])
    return boxes, labels, deltas, iou


def ignored(target: Mapping[str, Tensor]) -> Tensor:
    """(G,) bool: the objects that `target["ignore"]` marks, or else COCO's `target["iscrowd"]`; otherwise none."""
    return target.get("ignore", target.get("iscrowd", torch.zeros_like(target["labels"]))).bool()


def highest_iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Highest IoU (R,) of each box with `others`, and with which (R,); 0 and 0 where there are none."""
    if len(others) == 0:
        return boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    highest, which = box_iou(boxes, others).max(dim=1)
    return highest, which


def covers(boxes: Tensor, regions: Tensor) -> Tensor:
    """(R,) bool: the box and some region share at least half of the smaller one's area."""
    smaller = torch.minimum(box_area(boxes)[:, None], box_area(regions))
    shared = intersection(boxes, regions)
    return ((shared > 0) & (shared >= 0.5 * smaller)).any(dim=1)
