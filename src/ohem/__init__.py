"""Online hard example mining for object detectors (Shrivastava, Gupta and Girshick, CVPR 2016), in PyTorch."""

from importlib import import_module

TYPE_CHECKING = False  # as type checkers know it: `typing` takes longer to import than a signal may wait
if TYPE_CHECKING:
    from typing import Any

    from ohem.detection.fast_rcnn import FastRCNN as FastRCNN
    from ohem.errors import InputError as InputError
    from ohem.integrations import with_ohem as with_ohem
    from ohem.losses import OHEMLoss as OHEMLoss
    from ohem.mining import hard_examples as hard_examples
    from ohem.mining import hard_rois as hard_rois
    from ohem.recording import Recorder as Recorder
    from ohem.rois import RoIs as RoIs
    from ohem.rois import match as match
    from ohem.samplers import AllSampler as AllSampler
    from ohem.samplers import HierarchicalSampler as HierarchicalSampler
    from ohem.samplers import IoUBalancedSampler as IoUBalancedSampler
    from ohem.samplers import OHEMSampler as OHEMSampler
    from ohem.samplers import ProportionalSampler as ProportionalSampler
    from ohem.samplers import RandomSampler as RandomSampler
    from ohem.samplers import RankSampler as RankSampler
    from ohem.samplers import RatioSampler as RatioSampler
    from ohem.samplers import RoISampler as RoISampler

# Imported on first use: the command line must answer before torch is loaded.
_HOME = {
    "AllSampler": "ohem.samplers",
    "FastRCNN": "ohem.detection.fast_rcnn",
    "InputError": "ohem.errors",
    "HierarchicalSampler": "ohem.samplers",
    "IoUBalancedSampler": "ohem.samplers",
    "OHEMLoss": "ohem.losses",
    "OHEMSampler": "ohem.samplers",
    "ProportionalSampler": "ohem.samplers",
    "RandomSampler": "ohem.samplers",
    "RankSampler": "ohem.samplers",
    "RatioSampler": "ohem.samplers",
    "Recorder": "ohem.recording",
    "RoISampler": "ohem.samplers",
    "RoIs": "ohem.rois",
    "with_ohem": "ohem.integrations",
    "hard_examples": "ohem.mining",
    "hard_rois": "ohem.mining",
    "match": "ohem.rois",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(f"module 'ohem' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
