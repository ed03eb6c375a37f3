"""Samplers that do not use the losses: all RoIs, the heuristic of Fast R-CNN, and that of Libra R-CNN."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.checks import check_integer, check_number, check_share
from ohem.rois import RoIs
from ohem.samplers.base import Losses, images_to_draw, minable


@dataclass(frozen=True)
class AllSampler:
    """A sampler that chooses every RoI that is not ignored."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        return minable(rois)


@dataclass(frozen=True)
class RandomSampler:
    """The heuristic of Fast R-CNN (paper, section 3.1): random foreground, and random background of a range of IoU.

    Args:
        batch_size: number of RoIs per image (the paper's B / N).
        fg_fraction: highest share of foreground RoIs.
        fg_iou: lowest IoU of the foreground RoIs that are drawn. A foreground label also requires the IoU that `match`
            was given.
        bg_lo, bg_hi: background RoIs are drawn from those with an IoU in [bg_lo, bg_hi). If an image has none of them,
            they are drawn from all background RoIs of the image.
    """

    batch_size: int = 64
    fg_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_lo: float = 0.1
    bg_hi: float = 0.5

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_share("fg_fraction", self.fg_fraction)
        check_share("fg_iou", self.fg_iou)
        check_share("bg_lo", self.bg_lo)
        check_share("bg_hi", self.bg_hi)
        if self.bg_lo > self.bg_hi:
            raise ValueError(f"bg_lo {self.bg_lo} must not be above bg_hi {self.bg_hi}")

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        return torch.cat([self._choose(rois, rois.images == i) for i in images_to_draw(rois)])

    def _choose(self, rois: RoIs, in_image: Tensor) -> Tensor:
        foreground = in_image & rois.foreground & (rois.ious >= self.fg_iou)
        chosen = _draw(foreground, round(self.fg_fraction * self.batch_size))
        background = in_image & (rois.labels == 0)
        in_range = background & (rois.ious >= self.bg_lo) & (rois.ious < self.bg_hi)
        pool = in_range if in_range.any() else background
        return torch.cat([chosen, _draw(pool, self.batch_size - len(chosen))])


@dataclass(frozen=True)
class IoUBalancedSampler:
    """The sampler of Libra R-CNN (Pang et al., 2019): as many random background RoIs from each range of IoU.

    Args:
        batch_size: number of RoIs per image.
        fg_fraction: highest share of foreground RoIs, which are drawn at random.
        bins: number of ranges of equal length into which [0, `max_iou`) is divided. If a range has too few RoIs, the
            rest is drawn from all ranges.
        max_iou: upper end of the last range.
    """

    batch_size: int = 64
    fg_fraction: float = 0.25
    bins: int = 3
    max_iou: float = 0.5

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_share("fg_fraction", self.fg_fraction)
        check_integer("bins", self.bins, 1)
        check_number("max_iou", self.max_iou, 1e-6, 1)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        return torch.cat([self._choose(rois, rois.images == i) for i in images_to_draw(rois)])

    def _choose(self, rois: RoIs, in_image: Tensor) -> Tensor:
        chosen = _draw(in_image & rois.foreground, round(self.fg_fraction * self.batch_size))
        remaining = self.batch_size - len(chosen)
        background = in_image & (rois.labels == 0)
        iou_bin = (rois.ious * self.bins / self.max_iou).long()
        drawn = torch.cat([_draw(background & (iou_bin == i), remaining // self.bins) for i in range(self.bins)])
        rest = background.index_fill(0, drawn, False)
        return torch.cat([chosen, drawn, _draw(rest, remaining - len(drawn))])


def _draw(mask: Tensor, count: int) -> Tensor:
    """Returns at most `count` positions where `mask` (R,) is true, drawn at random without replacement."""
    positions = mask.nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), device=mask.device)[:count]]
