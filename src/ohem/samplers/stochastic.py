"""Related methods that draw RoIs at random: the harder a RoI is, the higher is its chance. OHEM takes the hardest.

To draw without replacement with the chances w, take the highest of log w + Gumbel noise (Vieira, 2014).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.checks import check_integer, check_number
from ohem.mining import hard_examples
from ohem.rois import RoIs
from ohem.samplers.base import Losses, by_image, images_to_draw, warn_of_nan


@dataclass(frozen=True)
class RankSampler:
    """Online batch selection (Loshchilov and Hutter, 2016): the chance of a RoI decays exponentially with its rank.

    RoIs are ranked by loss within their image. The read-only pass computes the losses anew at every step.

    Args:
        batch_size: number of RoIs per image, drawn without replacement.
        pressure: chance of the hardest RoI divided by that of the easiest; 1 draws uniformly.
    """

    batch_size: int = 64
    pressure: float = 100.0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_number("pressure", self.pressure, 1)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        warn_of_nan(values)
        pools = zip(images_to_draw(rois), by_image(rois), strict=True)
        return torch.cat([self._choose(values, candidates) for _, candidates in pools])

    def _choose(self, losses: Tensor, candidates: Tensor) -> Tensor:
        hardest_first = candidates[hard_examples(losses[candidates], len(candidates))]
        rank = torch.arange(len(candidates), device=losses.device)
        decay = math.log(self.pressure) / max(len(candidates), 1)
        log_chances = (-decay * rank).masked_fill(losses[hardest_first].isnan(), -math.inf)
        return hardest_first[_draw(log_chances, self.batch_size)]


@dataclass(frozen=True)
class ProportionalSampler:
    """A sampler that draws each RoI with a chance proportional to its loss.

    Args:
        batch_size: number of RoIs per image, drawn without replacement.
    """

    batch_size: int = 64

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        warn_of_nan(values)
        log_chances = values.float().log()
        pools = zip(images_to_draw(rois), by_image(rois), strict=True)
        return torch.cat([candidates[_draw(log_chances[candidates], self.batch_size)] for _, candidates in pools])


def _draw(log_chances: Tensor, count: int) -> Tensor:
    """Returns at most `count` positions, drawn without replacement. -inf is drawn after all others, NaN last."""
    gumbel = -torch.empty_like(log_chances).exponential_().log()
    return hard_examples(log_chances + gumbel, count)
