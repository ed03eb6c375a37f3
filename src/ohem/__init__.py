"""Online hard example mining for object detectors (Shrivastava, Gupta and Girshick, CVPR 2016), in PyTorch."""

from importlib import import_module

__version__ = "0.2.0"

TYPE_CHECKING = False  # Type checkers know this name. To import `typing` would delay the handling of signals.
if TYPE_CHECKING:
    from typing import Any

    from ohem.detection.fast_rcnn import FastRCNN as FastRCNN
    from ohem.errors import InputError as InputError
    from ohem.integrations import with_ohem as with_ohem
    from ohem.losses import OHEMLoss as OHEMLoss
    from ohem.mining import hard_examples as hard_examples
    from ohem.mining import hard_negatives as hard_negatives
    from ohem.mining import hard_rois as hard_rois
    from ohem.mining import triplet_losses as triplet_losses
    from ohem.mining_log import LoggedImage as LoggedImage
    from ohem.mining_log import MiningLog as MiningLog
    from ohem.recorder import Recorder as Recorder
    from ohem.rois import RoIs as RoIs
    from ohem.rois import match as match
    from ohem.samplers import AllSampler as AllSampler
    from ohem.samplers import HierarchicalSampler as HierarchicalSampler
    from ohem.samplers import IoUBalancedSampler as IoUBalancedSampler
    from ohem.samplers import NoiseAwareSampler as NoiseAwareSampler
    from ohem.samplers import OHEMSampler as OHEMSampler
    from ohem.samplers import ProportionalSampler as ProportionalSampler
    from ohem.samplers import RandomSampler as RandomSampler
    from ohem.samplers import RankSampler as RankSampler
    from ohem.samplers import RatioSampler as RatioSampler
    from ohem.samplers import RoISampler as RoISampler

# Imported on first use: the command line must answer without loading torch.
_MODULES = {
    "AllSampler": "ohem.samplers",
    "FastRCNN": "ohem.detection.fast_rcnn",
    "InputError": "ohem.errors",
    "HierarchicalSampler": "ohem.samplers",
    "IoUBalancedSampler": "ohem.samplers",
    "LoggedImage": "ohem.mining_log",
    "MiningLog": "ohem.mining_log",
    "NoiseAwareSampler": "ohem.samplers",
    "OHEMLoss": "ohem.losses",
    "OHEMSampler": "ohem.samplers",
    "ProportionalSampler": "ohem.samplers",
    "RandomSampler": "ohem.samplers",
    "RankSampler": "ohem.samplers",
    "RatioSampler": "ohem.samplers",
    "Recorder": "ohem.recorder",
    "RoISampler": "ohem.samplers",
    "RoIs": "ohem.rois",
    "with_ohem": "ohem.integrations",
    "hard_examples": "ohem.mining",
    "hard_negatives": "ohem.mining",
    "hard_rois": "ohem.mining",
    "match": "ohem.rois",
    "triplet_losses": "ohem.mining",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module 'ohem' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
