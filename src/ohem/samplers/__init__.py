"""Ways of choosing the RoIs to train on: callables of one signature, injected into the detector."""

from ohem.samplers.base import Losses, RoISampler, ask
from ohem.samplers.drawn import ProportionalSampler, RankSampler
from ohem.samplers.hard import OHEMSampler
from ohem.samplers.heuristic import AllSampler, IoUBalancedSampler, RandomSampler
from ohem.samplers.hierarchical import HierarchicalSampler
from ohem.samplers.ratio import RatioSampler

__all__ = [
    "AllSampler",
    "HierarchicalSampler",
    "IoUBalancedSampler",
    "Losses",
    "OHEMSampler",
    "ProportionalSampler",
    "RandomSampler",
    "RankSampler",
    "RatioSampler",
    "RoISampler",
    "ask",
]
