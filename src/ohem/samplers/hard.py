"""Online hard example mining (paper, section 4)."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ohem.checks import check_bool, check_choice, check_integer, check_number, check_optional, check_share
from ohem.mining import hard_rois
from ohem.rois import RoIs
from ohem.samplers.base import Losses, ask, by_image, check_weights, minable, warn_of_nan


@dataclass(frozen=True)
class OHEMSampler:
    """The RoIs of highest loss, de-duplicated by NMS.

    Args:
        batch_size: RoIs of each image (the paper's B / N).
        nms_iou: IoU above which a RoI is suppressed by a harder one; None switches NMS off.
        per_image: the hardest `batch_size` of each image (the paper); otherwise the hardest N x `batch_size` of the
            mini-batch, whichever image they are of (the authors' code).
        suppress: NMS among all RoIs of an "image" (the paper), or only among those of the same image and "label" (the
            authors' code: foreground never suppresses background).
        inclusive: NMS takes the last pixel of a box as part of it (the authors' "+ 1" in pixels of the resized image).
        fg_fraction: foreground and background are mined apart, with at most this share of foreground (Simo-Serra et
            al., 2015, and others after them); None (the paper) lets the losses decide.
        classifier, box_reg: weights of the two losses in the ranking; (1, 0) ranks by the class alone.
        negatives_per_positive: of the RoIs chosen, keeps background up to so many for each foreground RoI, rounded
            down, hardest first (TensorFlow's `HardExampleMiner`); None keeps all.
        min_negatives: background that is kept in any case.

    Raises:
        TypeError, ValueError: an argument is of another type, or out of range.
    """

    batch_size: int = 64
    nms_iou: float | None = 0.7
    per_image: bool = True
    suppress: Literal["image", "label"] = "image"
    inclusive: bool = False
    fg_fraction: float | None = None
    classifier: float = 1.0
    box_reg: float = 1.0
    negatives_per_positive: float | None = None
    min_negatives: int = 0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_optional(check_share, "nms_iou", self.nms_iou)
        check_bool("per_image", self.per_image)
        check_choice("suppress", self.suppress, ("image", "label"))
        check_bool("inclusive", self.inclusive)
        check_optional(check_share, "fg_fraction", self.fg_fraction)
        check_weights(self.classifier, self.box_reg)
        check_optional(check_number, "negatives_per_positive", self.negatives_per_positive, 0)
        check_integer("min_negatives", self.min_negatives)

    @classmethod
    def paper(cls, batch_size: int = 64) -> Self:
        """Section 4 of the paper: the defaults."""
        return cls(batch_size)

    @classmethod
    def release(cls, batch_size: int = 64) -> Self:
        """The authors' code: NMS within (image, label), in inclusive pixels, the hardest of the whole mini-batch."""
        return cls(batch_size, per_image=False, suppress="label", inclusive=True)

    @classmethod
    def mmdetection(cls, batch_size: int = 512, fg_fraction: float = 0.25) -> Self:
        """mmdetection's `OHEMSampler`: ranked by class loss, foreground and background apart, no NMS."""
        return cls(batch_size, nms_iou=None, fg_fraction=fg_fraction, box_reg=0.0)

    @classmethod
    def rfcn(cls, batch_size: int = 128) -> Self:
        """R-FCN (Dai et al., 2016, section 2.3): class + box loss, no NMS."""
        return cls(batch_size, nms_iou=None)

    @classmethod
    def tensorflow(
        cls, batch_size: int = 64, negatives_per_positive: float | None = None, min_negatives: int = 0
    ) -> Self:
        """`HardExampleMiner` of TensorFlow's detection API; both losses, which its configuration may weigh."""
        return cls(batch_size, negatives_per_positive=negatives_per_positive, min_negatives=min_negatives)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = ask(losses, self.classifier, self.box_reg)
        warn_of_nan(values)
        if not self.per_image:
            return self._mine(rois, values, minable(rois), self.batch_size * rois.num_images)
        return torch.cat([self._mine(rois, values, candidates, self.batch_size) for candidates in by_image(rois)])

    def survivors(self, rois: RoIs, losses: Tensor) -> int:
        """How many RoIs that may be mined are left by NMS; `losses` (R,) are those it was scored with."""
        everything = minable(rois)
        pools = [everything] if self.fg_fraction is None else _apart(rois, everything)
        return sum(len(self._hardest(rois, losses, pool, len(pool))) for pool in pools)

    def _mine(self, rois: RoIs, losses: Tensor, candidates: Tensor, k: int) -> Tensor:
        if self.fg_fraction is not None:
            foreground, background = _apart(rois, candidates)
            chosen = self._hardest(rois, losses, foreground, round(self.fg_fraction * k))
            chosen = torch.cat([chosen, self._hardest(rois, losses, background, k - len(chosen))])
        else:
            chosen = self._hardest(rois, losses, candidates, k)
        if self.negatives_per_positive is None:
            return chosen
        positive = rois.foreground[chosen]
        most = max(self.min_negatives, int(self.negatives_per_positive * int(positive.sum())))
        return chosen[positive | ((~positive).cumsum(0) <= most)]

    def _hardest(self, rois: RoIs, losses: Tensor, candidates: Tensor, k: int) -> Tensor:
        groups = rois.images[candidates]
        if self.suppress == "label":
            groups = groups + rois.num_images * rois.labels[candidates]
        boxes = rois.boxes[candidates]
        if self.inclusive:
            boxes = boxes + boxes.new_tensor([0, 0, 1, 1])
        return candidates[hard_rois(losses[candidates], boxes, groups, k, self.nms_iou)]


def _apart(rois: RoIs, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `indices` that are foreground, and the others."""
    foreground = rois.foreground[indices]
    return indices[foreground], indices[~foreground]
