"""Related methods that draw at random, the harder the likelier, where OHEM takes the hardest.

Drawing without replacement with the chances w is taking the highest of log w + Gumbel noise (Vieira, 2014).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.checks import check_integer, check_number
from ohem.mining import hard_examples
from ohem.rois import RoIs
from ohem.samplers.base import Losses, by_image, warn_of_nan


@dataclass(frozen=True)
class RankSampler:
    """Online batch selection (Loshchilov and Hutter, 2016): the chance of a RoI decays exponentially with its rank.

    The rank is that of its loss among all RoIs of its image, recomputed at every step by the read-only pass.

    Args:
        batch_size: RoIs of each image, drawn without replacement.
        pressure: chance of the hardest RoI over that of the easiest; 1 draws uniformly.
    """

    batch_size: int = 64
    pressure: float = 100.0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_number("pressure", self.pressure, 1)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        warn_of_nan(values)
        return torch.cat([self._draw(values, candidates) for candidates in by_image(rois)])

    def _draw(self, losses: Tensor, candidates: Tensor) -> Tensor:
        hardest_first = candidates[hard_examples(losses[candidates], len(candidates))]
        rank = torch.arange(len(candidates), device=losses.device)
        decay = math.log(self.pressure) / max(len(candidates), 1)
        chances = (-decay * rank).masked_fill(losses[hardest_first].isnan(), -math.inf)
        return hardest_first[_draw(chances, self.batch_size)]


@dataclass(frozen=True)
class ProportionalSampler:
    """The chance of a RoI is proportional to its loss.

    Args:
        batch_size: RoIs of each image, drawn without replacement.
    """

    batch_size: int = 64

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = losses()
        warn_of_nan(values)
        chances = values.float().log()
        return torch.cat([c[_draw(chances[c], self.batch_size)] for c in by_image(rois)])


def _draw(log_chances: Tensor, count: int) -> Tensor:
    """At most `count` positions, without replacement; NaN, and -inf before it, is drawn where nothing else is left."""
    gumbel = -torch.empty_like(log_chances).exponential_().log()
    return hard_examples(log_chances + gumbel, count)
