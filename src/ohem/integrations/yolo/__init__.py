"""The detection models of ultralytics: YOLOv8, YOLO11, YOLO26, and the others that have their loss.

`with_ohem` takes the model (`DetectionModel`) or the object `YOLO(...)`, whose trainer makes a model of its own.
`python -m ohem.integrations.yolo` is the command `yolo` with mining.
"""

from ultralytics.engine.model import Model
from ultralytics.nn.tasks import DetectionModel

from ohem.integrations.registry import with_ohem
from ohem.integrations.yolo.model import Mining
from ohem.integrations.yolo.trainer import mine_in_trainer
from ohem.recorder import Recorder
from ohem.samplers import RatioSampler


def default_sampler(_: object = None) -> RatioSampler:
    """Returns the sampler if the user gives none: all foreground, and the hardest background."""
    # The assigner has chosen the foreground already, the best few anchors of an object, and divides the loss by their
    # targets: without some of them, the objects would count less. The head that needs no NMS has one anchor for each
    # object, so that a ratio alone would leave it a handful of background: at least 256, as for RetinaNet.
    return RatioSampler(3, min_negatives=256)


@with_ohem.register(DetectionModel, default=default_sampler)
def _install(model: DetectionModel, sampler: Recorder) -> None:
    Mining(model, sampler).install()


@with_ohem.register(Model, default=default_sampler)
def _install_in_wrapper(model: Model, sampler: Recorder) -> None:
    with_ohem(model.model, sampler)
    mine_in_trainer(model, sampler)
