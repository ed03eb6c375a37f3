"""Mining in detectors that people already train: `with_ohem(model, sampler)`."""

from ohem.integrations import rcnn as rcnn
from ohem.integrations.registry import with_ohem

__all__ = ["with_ohem"]
