"""Ways of choosing the RoIs to train on: callables of one signature, injected into the detector.

Losses are lazy: a sampler that needs them calls `losses()`, which runs the read-only pass; others never pay for it.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   N: images
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ohem.mining import hard_rois
from ohem.rois import IGNORE, RoIs


class RoISampler(Protocol):
    """Chooses the RoIs of a mini-batch to train on."""

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        """Indices (B,) int64 of the RoIs to train on. Calling `losses()` runs the read-only pass: (R,) float32."""
        ...


@dataclass(frozen=True)
class AllSampler:
    """Every RoI that is not ignored."""

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        return (rois.labels != IGNORE).nonzero().squeeze(1)


@dataclass(frozen=True)
class RandomSampler:
    """Fast R-CNN's heuristic (paper, section 3.1): a share of foreground, background from a range of IoU, at random.

    Args:
        batch_size: RoIs of each image (the paper's B / N).
        fg_fraction: highest share of foreground RoIs.
        fg_iou: lowest IoU of a foreground RoI sampled; the label already asks for the IoU that `match` was given.
        bg_iou: background is drawn from [low, high) of IoU: the paper's `bg_lo` and 0.5. Where an image has none there,
            any of its background RoIs is drawn.
    """

    batch_size: int = 64
    fg_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_iou: tuple[float, float] = (0.1, 0.5)

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        return torch.cat([self._image(rois, rois.images == i) for i in range(rois.num_images)])

    def _image(self, rois: RoIs, here: Tensor) -> Tensor:
        foreground = here & rois.foreground & (rois.ious >= self.fg_iou)
        chosen = _draw(foreground, round(self.fg_fraction * self.batch_size))
        background = here & (rois.labels == 0)
        low, high = self.bg_iou
        in_range = background & (rois.ious >= low) & (rois.ious < high)
        pool = in_range if in_range.any() else background
        return torch.cat([chosen, _draw(pool, self.batch_size - len(chosen))])


@dataclass(frozen=True)
class OHEMSampler:
    """Online hard example mining (paper, section 4): the RoIs of highest loss, de-duplicated by NMS.

    Args:
        batch_size: RoIs of each image (the paper's B / N).
        nms_iou: IoU above which a RoI is suppressed by a harder one; None switches NMS off.
        per_image: the hardest `batch_size` of each image (the paper); otherwise the hardest N x `batch_size` of the
            mini-batch, whichever image they are of (the authors' code).
        suppress: NMS among all RoIs of an "image" (the paper), or only among those of the same image and "label" (the
            authors' code: foreground never suppresses background).
        inclusive: NMS takes the last pixel of a box as part of it (the authors' "+ 1" in pixels of the resized image).
    """

    batch_size: int = 64
    nms_iou: float | None = 0.7
    per_image: bool = True
    suppress: Literal["image", "label"] = "image"
    inclusive: bool = False

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        values = losses()
        if values.isnan().any():
            warnings.warn(
                f"{int(values.isnan().sum())} of {len(values)} RoI losses are NaN: they are mined last, "
                "but the network or its input is broken",
                RuntimeWarning,
                stacklevel=2,
            )
        minable = (rois.labels != IGNORE).nonzero().squeeze(1)
        if not self.per_image:
            return self._hardest(rois, values, minable, self.batch_size * rois.num_images)
        of_image = [minable[rois.images[minable] == i] for i in range(rois.num_images)]
        return torch.cat([self._hardest(rois, values, candidates, self.batch_size) for candidates in of_image])

    def survivors(self, rois: RoIs, losses: Tensor) -> int:
        """How many RoIs that may be mined are left by NMS; `losses` (R,) are those it was scored with."""
        minable = (rois.labels != IGNORE).nonzero().squeeze(1)
        return len(self._hardest(rois, losses, minable, len(minable)))

    def _hardest(self, rois: RoIs, losses: Tensor, candidates: Tensor, k: int) -> Tensor:
        if self.suppress not in ("image", "label"):
            raise ValueError(f'suppress must be "image" or "label", not {self.suppress!r}')
        groups = rois.images[candidates]
        if self.suppress == "label":
            groups = groups + rois.num_images * rois.labels[candidates]
        boxes = rois.boxes[candidates]
        if self.inclusive:
            boxes = boxes + boxes.new_tensor([0, 0, 1, 1])
        return candidates[hard_rois(losses[candidates], boxes, groups, k, self.nms_iou)]


def _draw(mask: Tensor, count: int) -> Tensor:
    """At most `count` positions where `mask` (R,) is true, at random without replacement."""
    positions = mask.nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), device=mask.device)[:count]]
