"""Online hard example mining (paper, section 4)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ohem.checks import check_bool, check_choice, check_integer, check_number, check_optional, check_share
from ohem.mining import hard_rois
from ohem.rois import RoIs
from ohem.samplers.base import Losses, by_image, call_losses, check_weights, minable, warn_of_nan


@dataclass(frozen=True)
class OHEMSampler:
    """A sampler that chooses the RoIs of highest loss, without near-duplicates: NMS by loss removes those.

    `batch_size` counts RoIs per image. In torchvision's R-CNN detectors it replaces `box_batch_size_per_image` (512
    random RoIs per image) and `box_positive_fraction`. The paper has 64 per image. For torchvision's detectors, start
    with 128. `with_ohem` gives the reason.

    Args:
        batch_size: number of RoIs per image (the paper's B / N). A mini-batch of N images trains on at most
            N x `batch_size` RoIs: with 128 and two images on 256.
        nms_iou: IoU above which a harder RoI suppresses another one; None switches NMS off.
        per_image: True (the paper) takes the hardest `batch_size` RoIs of each image. False (the authors' code) takes
            the hardest N x `batch_size` of the mini-batch, whichever image they belong to.
        suppress: "image" (the paper) runs NMS among all RoIs of an image. "label" (the authors' code) runs it among
            those of the same image and label, so that foreground never suppresses background.
        inclusive: NMS counts the last pixel of a box as part of it (the authors' "+ 1", in pixels of the resized
            image).
        fg_fraction: highest share of foreground, if foreground and background are mined separately (Simo-Serra et al.,
            2015, and others after them). None (the paper) mines them together, and the losses decide.
        cls_weight, box_weight: weights of the two losses in the ranking; (1, 0) ranks by the classification loss alone.
        negatives_per_positive: highest number of background RoIs for each foreground RoI among the chosen, rounded
            down; the hardest are kept (TensorFlow's `HardExampleMiner`). None keeps all.
        min_negatives: number of background RoIs that are kept whatever `negatives_per_positive` is.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """

    batch_size: int = 64
    nms_iou: float | None = 0.7
    per_image: bool = True
    suppress: Literal["image", "label"] = "image"
    inclusive: bool = False
    fg_fraction: float | None = None
    cls_weight: float = 1.0
    box_weight: float = 1.0
    negatives_per_positive: float | None = None
    min_negatives: int = 0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_optional(check_share, "nms_iou", self.nms_iou)
        check_bool("per_image", self.per_image)
        check_choice("suppress", self.suppress, ("image", "label"))
        check_bool("inclusive", self.inclusive)
        check_optional(check_share, "fg_fraction", self.fg_fraction)
        check_weights(self.cls_weight, self.box_weight)
        check_optional(check_number, "negatives_per_positive", self.negatives_per_positive, 0)
        check_integer("min_negatives", self.min_negatives)

    @classmethod
    def paper(cls, batch_size: int = 64) -> "OHEMSampler":
        """Makes the sampler of the paper (section 4), which has the defaults of the class."""
        return cls(batch_size)

    @classmethod
    def release(cls, batch_size: int = 64, **options: Any) -> "OHEMSampler":
        """Makes the sampler of the authors' code.

        NMS runs within (image, label), in inclusive pixels. The hardest RoIs of the whole mini-batch are chosen.
        `options` are other arguments of the class, as in the other presets.
        """
        preset: dict[str, Any] = {"per_image": False, "suppress": "label", "inclusive": True}
        return cls(batch_size, **preset | options)

    @classmethod
    def separate(cls, batch_size: int = 64, fg_fraction: float = 0.25, **options: Any) -> "OHEMSampler":
        """Makes a sampler that mines foreground and background separately, as in work before the paper."""
        return cls(batch_size, fg_fraction=fg_fraction, **options)

    @classmethod
    def mmdetection(cls, batch_size: int = 512, fg_fraction: float = 0.25, **options: Any) -> "OHEMSampler":
        """Makes the sampler of mmdetection: classification loss, foreground and background separate, no NMS."""
        preset: dict[str, Any] = {"nms_iou": None, "box_weight": 0.0}
        return cls(batch_size, fg_fraction=fg_fraction, **preset | options)

    @classmethod
    def rfcn(cls, batch_size: int = 128, **options: Any) -> "OHEMSampler":
        """Makes the sampler of R-FCN (Dai et al., 2016, section 2.3): classification + box loss, no NMS."""
        return cls(batch_size, **{"nms_iou": None} | options)

    @classmethod
    def tensorflow(cls, batch_size: int = 64, **options: Any) -> "OHEMSampler":
        """Makes the sampler of TensorFlow's `HardExampleMiner`.

        A configuration of that program may set other weights of the losses, `negatives_per_positive` and
        `min_negatives`. Give them as `options`.
        """
        return cls(batch_size, **options)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        # A GPU counts the candidates before it computes the losses, and NaN after the choice: the host waits less.
        pools = by_image(rois) if self.per_image else [minable(rois)]
        k = self.batch_size if self.per_image else self.batch_size * rois.num_images
        values = call_losses(losses, self.cls_weight, self.box_weight)
        chosen = torch.cat([self._mine(rois, values, candidates, k) for candidates in pools])
        warn_of_nan(values)
        return chosen

    def survivors(self, rois: RoIs, losses: Tensor) -> int:
        """Returns the number of RoIs that NMS leaves, of those that may be mined, ranked by `losses` (R,)."""
        candidates = minable(rois)
        pools = [candidates] if self.fg_fraction is None else _split_foreground(rois, candidates)
        return sum(len(self._hardest(rois, losses, pool, len(pool))) for pool in pools)

    def _mine(self, rois: RoIs, losses: Tensor, candidates: Tensor, k: int) -> Tensor:
        if self.fg_fraction is not None:
            foreground, background = _split_foreground(rois, candidates)
            chosen = self._hardest(rois, losses, foreground, round(self.fg_fraction * k))
            chosen = torch.cat([chosen, self._hardest(rois, losses, background, k - len(chosen))])
        else:
            chosen = self._hardest(rois, losses, candidates, k)
        if self.negatives_per_positive is None:
            return chosen
        positive = rois.foreground[chosen]
        most_negatives = max(self.min_negatives, int(self.negatives_per_positive * int(positive.sum())))
        return chosen[positive | ((~positive).cumsum(0) <= most_negatives)]

    def _hardest(self, rois: RoIs, losses: Tensor, candidates: Tensor, k: int) -> Tensor:
        groups = rois.images[candidates]
        if self.suppress == "label":
            groups = groups + rois.num_images * rois.labels[candidates]
        boxes = rois.boxes[candidates]
        if self.inclusive:
            half = boxes.shape[1] // 2
            boxes = torch.cat([boxes[:, :half], boxes[:, half:] + 1], dim=1)
        return candidates[hard_rois(losses[candidates], boxes, groups, k, self.nms_iou)]


def _split_foreground(rois: RoIs, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Returns those of `indices` that are foreground, and the others."""
    foreground = rois.foreground[indices]
    return indices[foreground], indices[~foreground]
