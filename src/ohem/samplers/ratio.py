"""Hard background at a ratio to the foreground, as in SSD (Liu et al., ECCV 2016, section 2.2)."""

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
    """A sampler that chooses all foreground RoIs, and the hardest background RoIs at a ratio to them, in each image.

    No RoI is chosen twice.

    Args:
        negatives_per_positive: number of background RoIs for each foreground RoI of the image. The product is rounded
            up.
        min_negatives: lowest number of background RoIs per image, as far as there are so many. With it, an image
            without an object is trained on too.
        nms_iou: IoU above which a harder background RoI suppresses another one; None (SSD) switches NMS off.
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
        return torch.cat([self._choose(rois, values, candidates) for candidates in by_image(rois)])

    def _choose(self, rois: RoIs, losses: Tensor, candidates: Tensor) -> Tensor:
        foreground = rois.foreground[candidates]
        positives, negatives = candidates[foreground], candidates[~foreground]
        # A ratio such as 7 / 3 is not exact in binary: 3 times it must give 7, and not 8.
        count = max(self.min_negatives, math.ceil(self.negatives_per_positive * len(positives) - 1e-6))
        boxes, groups = rois.boxes[negatives], rois.images[negatives]
        hardest = hard_rois(losses[negatives], boxes, groups, count, self.nms_iou)
        return torch.cat([positives, negatives[hardest]])
