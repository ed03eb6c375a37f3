"""Samplers: they choose the RoIs to train on. All have one signature, and a detector is given one of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ohem.samplers.base import Losses, RoISampler, call_losses
from ohem.samplers.heuristic import AllSampler, IoUBalancedSampler, RandomSampler
from ohem.samplers.hierarchical import HierarchicalSampler
from ohem.samplers.noise_aware import NoiseAwareSampler
from ohem.samplers.ohem import OHEMSampler
from ohem.samplers.ratio import RatioSampler
from ohem.samplers.stochastic import ProportionalSampler, RankSampler


class NamedSampler(NamedTuple):
    """A sampler that recipes and the command line can name."""

    make: Callable[..., RoISampler]
    """Class of the sampler, or a preset of it."""
    options: tuple[str, ...]
    """Arguments that a recipe may give. The others have the defaults of `make`."""


_RANKING = ("batch_size", "nms_iou", "per_image", "suppress", "inclusive", "cls_weight", "box_weight")
SAMPLERS: Mapping[str, NamedSampler] = {
    "ohem": NamedSampler(OHEMSampler, _RANKING),
    "random": NamedSampler(RandomSampler, ("batch_size", "fg_fraction", "bg_lo")),
    "all": NamedSampler(AllSampler, ()),
    "release": NamedSampler(OHEMSampler.release, _RANKING),
    "mmdetection": NamedSampler(OHEMSampler.mmdetection, (*_RANKING, "fg_fraction")),
    "separate": NamedSampler(OHEMSampler.separate, (*_RANKING, "fg_fraction")),
    "rank": NamedSampler(RankSampler, ("batch_size", "pressure")),
    "proportional": NamedSampler(ProportionalSampler, ("batch_size",)),
    "iou_balanced": NamedSampler(IoUBalancedSampler, ("batch_size", "fg_fraction")),
    "hierarchical": NamedSampler(HierarchicalSampler, ("batch_size", "nms_iou", "cls_weight", "box_weight")),
    "noise_aware": NamedSampler(NoiseAwareSampler.ohem, ("batch_size", "nms_iou", "confidence", "far", "warmup")),
    "ratio": NamedSampler(RatioSampler, ("negatives_per_positive", "nms_iou")),
}
"""Every sampler that has a name in recipes and on the command line."""


def make_sampler(name: str, **options: Any) -> RoISampler:
    """Makes the sampler `name` of `SAMPLERS`. Ignores options that it does not have, and options that are None."""
    sampler = SAMPLERS[name]
    return sampler.make(**{key: options[key] for key in sampler.options if options.get(key) is not None})


__all__ = [
    "SAMPLERS",
    "AllSampler",
    "HierarchicalSampler",
    "IoUBalancedSampler",
    "Losses",
    "NamedSampler",
    "NoiseAwareSampler",
    "OHEMSampler",
    "ProportionalSampler",
    "RandomSampler",
    "RankSampler",
    "RatioSampler",
    "RoISampler",
    "call_losses",
    "make_sampler",
]
