"""Regions of interest (RoIs): proposals that are matched with the ground truth and labelled (paper, section 3.1).

Shapes: R: RoIs of the mini-batch   N: images   P, G: proposals, ground-truth boxes of one image   K: foreground classes
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ohem.boxes import MOST_PAIRS, area, check_boxes, encode, intersection, pairwise_iou
from ohem.checks import check_bool, check_integer, check_sequence, check_share, check_tensor, describe, is_false
from ohem.targets import ignored as ignored
from ohem.targets import read_targets

BACKGROUND = 0
IGNORE = -1
# Regression targets are divided by these by default (py-faster-rcnn's precomputed normalisation).
BOX_MEAN = (0.0, 0.0, 0.0, 0.0)
BOX_STD = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class RoIs:
    """Labelled RoIs of a mini-batch, one row each.

    Raises:
        TypeError: a tensor is of another dtype, or `num_images` is not an integer.
        ValueError: the shapes or devices do not agree.
    """

    boxes: Tensor
    """(R, 4) float32 `[x1, y1, x2, y2]`, pixels of the (resized) image; (R, 6) in a volume: see `ohem.boxes`."""
    images: Tensor
    """(R,) int64, which image of the mini-batch."""
    labels: Tensor
    """(R,) int64, 0 background, 1..K foreground, -1 ignored (neither trained on nor mined)."""
    targets: Tensor
    """(R, 4) float32 normalised regression targets, zero where not foreground; (R, 6) in a volume."""
    ious: Tensor
    """(R,) float32, highest IoU with a ground-truth box that is not ignored."""
    num_images: int
    """N, also counting images without a RoI."""

    def __post_init__(self) -> None:
        check_boxes("boxes", self.boxes, "floating")
        rows = len(self.boxes)
        check_tensor("images", self.images, (rows,), "integer")
        check_tensor("labels", self.labels, (rows,), "integer")
        check_tensor("targets", self.targets, self.boxes.shape, "floating")
        check_tensor("ious", self.ious, (rows,), "floating")
        check_integer("num_images", self.num_images)
        for name in ("images", "labels", "targets", "ious"):
            if (device := getattr(self, name).device) != self.boxes.device:
                raise ValueError(f"{name} must be on the device of the boxes, {self.boxes.device}, not {device}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | list[int] | slice) -> "RoIs":
        """Returns the RoIs at `index`: int64 indices or a boolean mask."""
        given: object = index
        if isinstance(given, Integral):
            raise TypeError(f"RoIs must be indexed by a tensor, a list or a slice, not {index}: give [{index}]")
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
        """(R,) bool, whether a RoI is foreground."""
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

    A RoI is foreground if its highest IoU with a ground-truth box is at least `fg_iou`; it gets the label of that box.
    Another RoI is labelled -1 if it shares at least half of its area, or of the area of an ignored region, with that
    region: as background, it would be mined first, although it may contain an object. All other RoIs are background.

    Args:
        proposals: per image (P, 4) float boxes.
        targets: per image a dict of `boxes` (G, 4), `labels` (G,) int64 in 1..K and, optionally, `ignore` (G,) bool
            (difficult objects, crowds).
        mean, std: normalisation of the regression targets, (4,) for all classes or (K + 1, 4) per class.
        fg_iou: lowest IoU of a foreground RoI.
        add_ground_truth: whether to put the ground-truth boxes before the proposals, as the authors do.

    Raises:
        TypeError: an argument is of another type or dtype.
        ValueError: there are not as many targets as proposals, or none at all, shapes do not agree, or a value is out
            of range. Values of tensors are checked on the CPU only.
    """
    check_sequence("proposals", proposals, "tensors (P, 4), one per image")
    check_sequence("targets", targets, "dicts, one per image")
    if len(proposals) != len(targets):
        raise ValueError(f"match needs one target per image, not {len(targets)} for {len(proposals)} proposals")
    if len(proposals) == 0:
        raise ValueError("match needs the proposals of at least one image")
    check_share("fg_iou", fg_iou)
    check_bool("add_ground_truth", add_ground_truth)
    pairs = zip(read_proposals(proposals), read_targets(targets), strict=True)
    parts = [_match_image(p, t, fg_iou, add_ground_truth) for p, t in pairs]
    boxes, labels, deltas, ious = (torch.cat(column) for column in zip(*parts, strict=True))
    images = torch.cat([torch.full((len(p[0]),), i, device=boxes.device) for i, p in enumerate(parts)])
    mean, std = (_normaliser(name, values, labels, deltas) for name, values in (("mean", mean), ("std", std)))
    normalised = torch.where((labels > BACKGROUND)[:, None], (deltas - mean) / std, 0)
    return RoIs(boxes, images, labels, normalised, ious, len(proposals))


def background_rois(targets: Sequence[Mapping[str, Tensor]]) -> RoIs | None:
    """Returns the regions `background` (H, 4) of `targets` that `match` labels as background; None if none has some."""
    if not any("background" in target for target in targets):
        return None
    regions = [target.get("background", target["boxes"][:0]) for target in targets]
    rois = match(regions, targets, add_ground_truth=False)
    return rois[rois.labels == BACKGROUND]


def joined(rois: RoIs, others: RoIs | None) -> RoIs:
    """Returns the RoIs of both, which are of the same mini-batch."""
    if others is None:
        return rois
    parts = rois, others
    return RoIs(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.ious for part in parts]),
        rois.num_images,
    )


def read_proposals(proposals: Sequence[Tensor]) -> list[Tensor]:
    """Returns the proposals of each image, (P, 4) of floating dtype.

    Raises:
        TypeError: a value is not a tensor of numbers.
        ValueError: it is of another shape or, on the CPU, a box is not finite or is inverted.
    """
    read = []
    for i, boxes in enumerate(proposals):
        check_tensor(f"proposals[{i}]", boxes, ("P", 4))
        if is_false(boxes.isfinite()):
            raise ValueError(f"proposals[{i}] must be finite: some are NaN or infinite")
        if is_false(boxes[:, 2:] >= boxes[:, :2]):
            raise ValueError(f"proposals[{i}] must be [x1, y1, x2, y2] with x2 >= x1 and y2 >= y1")
        read.append(boxes if boxes.is_floating_point() else boxes.float())
    return read


def check_normalisation(name: str, values: Tensor | Sequence[float], num_classes: int | None = None) -> None:
    """Raises `TypeError` or `ValueError` where `values` are not (4,) or (K + 1, 4) numbers; of `std`, above 0."""
    try:
        given = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be 4 numbers, or 4 of each class, not {describe(values)}") from None
    rows = "K + 1" if num_classes is None else num_classes
    if given.shape != (4,) and (
        given.dim() != 2 or given.shape[1] != 4 or (num_classes is not None and len(given) != num_classes)
    ):
        raise ValueError(f"{name} must be of shape (4,) or ({rows}, 4), not {tuple(given.shape)}")
    if is_false(given.isfinite()) or (name.endswith("std") and is_false(given > 0)):
        raise ValueError(f"{name} must be finite{' and above 0' if name.endswith('std') else ''}")


def target_statistics(rois: Iterable[RoIs], num_classes: int) -> tuple[Tensor, Tensor]:
    """Computes mean and standard deviation of the regression targets of foreground RoIs: the authors' normalisation.

    Args:
        rois: mini-batches matched with mean 0 and std 1.
        num_classes: K + 1.

    Returns:
        mean, std (K + 1, 4) float32, on the CPU; 0 and 1 for a class without a foreground RoI, and for background.

    Raises:
        TypeError, ValueError: `num_classes` is not an integer of at least 2.
    """
    check_integer("num_classes", num_classes, 2)
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
    # A single RoI has no spread except for rounding; a division by it would make other targets huge.
    return mean.float(), torch.where(std > 1e-6, std, 1).float()


def _match_image(
    proposals: Tensor, target: Mapping[str, Tensor], fg_iou: float, add_ground_truth: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns boxes (R, 4), labels (R,), raw regression targets (R, 4) and highest IoU (R,) of one image."""
    ignore = ignored(target)
    truth, truth_labels, regions = target["boxes"][~ignore], target["labels"][~ignore], target["boxes"][ignore]
    boxes = torch.cat([truth, proposals]) if add_ground_truth else proposals
    iou, matched = highest_iou(boxes, truth)
    ignored_iou, _ = highest_iou(boxes, regions)
    foreground = (iou >= fg_iou) & (iou >= ignored_iou)

    labels = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    labels[covers(boxes, regions)] = IGNORE
    if not len(truth):
        return boxes, labels, torch.zeros_like(boxes), iou
    # Not by an index: the host would have to wait for a GPU to count the foreground.
    deltas = torch.where(foreground[:, None], encode(boxes, truth[matched]), 0)
    return boxes, torch.where(foreground, truth_labels[matched], labels), deltas, iou


def _normaliser(name: str, values: Tensor | Sequence[float], labels: Tensor, like: Tensor) -> Tensor:
    """Returns the mean or std (4,) for all RoIs, or (R, 4) by the label of each RoI."""
    check_normalisation(name, values)
    given = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if given.dim() == 1:
        return given
    if is_false(labels < len(given)):
        raise ValueError(f"{name} must have a row for each class, not {len(given)}: label {int(labels.max())} has none")
    return given[labels.clamp(min=0)]


def highest_iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the highest IoU (R,) of each box with `others` and the index (R,) of that box; 0, 0 without others."""
    if len(others) == 0:
        return boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    parts = [pairwise_iou(part, others).max(dim=1) for part in _chunks(boxes, others)]
    highest, which = (torch.cat(column) for column in zip(*parts, strict=True))
    return highest, which


def covers(boxes: Tensor, regions: Tensor) -> Tensor:
    """Returns (R,) bool: whether a box and some region share at least half of the area of the smaller one."""
    return torch.cat([_cover(part, regions) for part in _chunks(boxes, regions)])


def _cover(boxes: Tensor, regions: Tensor) -> Tensor:
    smaller = torch.minimum(area(boxes)[:, None], area(regions))
    shared = intersection(boxes, regions)
    return ((shared > 0) & (shared >= 0.5 * smaller)).any(dim=1)


def _chunks(boxes: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Splits `boxes` into parts that have at most `MOST_PAIRS` pairs with `others`."""
    return torch.split(boxes, max(1, MOST_PAIRS // max(1, len(others))))
