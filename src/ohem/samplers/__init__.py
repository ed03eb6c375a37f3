"""Ways of choosing the RoIs to train on: callables of one signature, injected into the detector."""

from ohem.samplers.base import RoISampler
from ohem.samplers.drawn import ProportionalSampler, RankSampler
from ohem.samplers.hard import OHEMSampler
from ohem.samplers.heuristic import AllSampler, RandomSampler
from ohem.samplers.ratio import RatioSampler

__all__ = [
    "AllSampler",
    "OHEMSampler",
    "ProportionalSampler",
    "RandomSampler",
    "RankSampler",
    "RatioSampler",
    "RoISampler",
]
