"""Samplers that do not look at losses: every RoI, and Fast R-CNN's heuristic."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.checks import check_integer, check_number, check_share, describe
from ohem.rois import RoIs
from ohem.samplers.base import Losses, minable


@dataclass(frozen=True)
class AllSampler:
    """Every RoI that is not ignored."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        return minable(rois)


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

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_share("fg_fraction", self.fg_fraction)
        check_share("fg_iou", self.fg_iou)
        if not isinstance(self.bg_iou, (tuple, list)) or len(self.bg_iou) != 2:
            raise TypeError(f"bg_iou must be two numbers, (low, high), not {describe(self.bg_iou)}")
        low, high = self.bg_iou
        check_share("bg_iou[0]", low)
        check_share("bg_iou[1]", high)
        if low > high:
            raise ValueError(f"bg_iou must be (low, high), not {self.bg_iou}")

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
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
class IoUBalancedSampler:
    """Libra R-CNN's background (Pang et al., 2019): as much from each of several ranges of IoU, at random.

    Args:
        batch_size: RoIs of each image.
        fg_fraction: highest share of foreground RoIs, drawn at random.
        bins: ranges of equal length that [0, `max_iou`) is cut into. What a range lacks is drawn from all of them.
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
        return torch.cat([self._image(rois, rois.images == i) for i in range(rois.num_images)])

    def _image(self, rois: RoIs, here: Tensor) -> Tensor:
        chosen = _draw(here & rois.foreground, round(self.fg_fraction * self.batch_size))
        left = self.batch_size - len(chosen)
        background = here & (rois.labels == 0)
        place = (rois.ious * self.bins / self.max_iou).long()
        drawn = torch.cat([_draw(background & (place == i), left // self.bins) for i in range(self.bins)])
        rest = background.index_fill(0, drawn, False)
        return torch.cat([chosen, drawn, _draw(rest, left - len(drawn))])


def _draw(mask: Tensor, count: int) -> Tensor:
    """At most `count` positions where `mask` (R,) is true, at random without replacement."""
    positions = mask.nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), device=mask.device)[:count]]
