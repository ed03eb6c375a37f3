"""Mining in detectors of other packages: `with_ohem(model, sampler)`."""

from ohem.integrations import fcos as fcos
from ohem.integrations import rcnn as rcnn
from ohem.integrations import retinanet as retinanet
from ohem.integrations import ssd as ssd
from ohem.integrations.registry import with_ohem

__all__ = ["with_ohem"]
