"""Hard negatives at a ratio to the positives, as SSD does it (Liu et al., ECCV 2016, section 2.2)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.checks import check_integer, check_number, check_optional, check_share
from ohem.mining import hard_rois
from ohem.rois import RoIs
from ohem.samplers.base import Losses, by_image, warn_of_nan


@dataclass(frozen=True)
class RatioSampler:
    """All foreground, and of each image the hardest background at a ratio to it; no RoI is chosen twice.

    Args:
        negatives_per_positive: background RoIs for each foreground RoI of the image, a fraction of one rounded up.
        min_negatives: background RoIs of an image in any case, as far as there are any: an image without an object
            trains too.
        nms_iou: IoU above which a background RoI is suppressed by a harder one; None (SSD) switches NMS off.
    """

    negatives_per_positive: float = 3.0
    min_negatives: int = 3
    nms_iou: float | None = None

    def __post_init__(self) -> None:
        check_number("negatives_per_positive", self.negatives_per_positive, 0)
        check_integer("min_negatives", self.min_negatives)
        check_optional(check_share, "nms_iou", self.nms_iou)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        warn_of_nan(values)
        return torch.cat([self._image(rois, values, candidates) for candidates in by_image(rois)])

    def _image(self, rois: RoIs, losses: Tensor, candidates: Tensor) -> Tensor:
        foreground = rois.foreground[candidates]
        chosen, negatives = candidates[foreground], candidates[~foreground]
        # A ratio such as 7 / 3 is not exact: 3 times it is 7, and not a little more.
        count = max(self.min_negatives, math.ceil(self.negatives_per_positive * len(chosen) - 1e-6))
        boxes, groups = rois.boxes[negatives], rois.images[negatives]
        return torch.cat([chosen, negatives[hard_rois(losses[negatives], boxes, groups, count, self.nms_iou)]])
