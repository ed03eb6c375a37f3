"""What `with_ohem` adds to a detection model of ultralytics.

Their trainer makes the criterion anew when it resumes, and removes it from files. So the method `loss` of the model is
replaced, which mines with the criterion that the model has at this step.

Their trainer also pickles the whole model into `last.pt` and `best.pt`. Nothing of `ohem` may be in these files, which
must load where it is not installed. So the pickled model has no mining; a copy (`copy.deepcopy`) has.
"""

import copy
from typing import Any

import torch
from ultralytics.nn import tasks
from ultralytics.nn.tasks import BaseModel, DetectionModel

from ohem.integrations.parts import is_original
from ohem.integrations.yolo.loss import mined
from ohem.mining_log import MiningLog
from ohem.recorder import Recorder


class Mining:
    """The methods that replace those of one model.

    Args:
        model: a detection model.
        recorder: chooses the anchors.
    """

    def __init__(self, model: DetectionModel, recorder: Recorder) -> None:
        self.model, self.recorder = model, recorder

    def install(self) -> None:
        """Makes the model mine.

        Raises:
            TypeError: the model does not compute its loss as a detection model does.
        """
        _check_model(self.model)
        for name, method in self._methods().items():
            setattr(self.model, name, method)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> Any:
        """Computes the loss, in train mode with the chosen anchors alone. Arguments and result are those of theirs."""
        model = self.model
        _check_model(model)
        if not model.training or torch.is_inference_mode_enabled():
            return type(model).loss(model, batch, preds)
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        if isinstance(self.recorder, MiningLog) and "im_file" in batch:
            self.recorder.begin_step(batch["im_file"])  # augmented, so that the place in the picture is not known
        with mined(model.criterion, self.recorder):
            return type(model).loss(model, batch, preds)

    def copied(self, memo: dict[int, Any]) -> DetectionModel:
        """Returns a deep copy of the model, which mines too."""
        twin: DetectionModel = object.__new__(type(self.model))
        memo[id(self.model)] = twin
        twin.__setstate__(copy.deepcopy(vars(self.model), memo))
        return twin

    def state(self) -> dict[str, Any]:
        """Returns the attributes of the model that are written to a file."""
        without = {"mining", *self._methods()}
        return {name: value for name, value in vars(self.model).items() if name not in without}

    def _methods(self) -> dict[str, Any]:
        # `copy` and `pickle` take these special methods from the instance.
        return {"loss": self.loss, "__deepcopy__": self.copied, "__getstate__": self.state}


def _check_model(model: DetectionModel) -> None:
    """Raises `TypeError` if the loss of the model is not that of ultralytics' detection models."""
    kind = type(model)
    # An `init_criterion` of the user is called, and what it returns is checked at every step.
    other_task = kind.init_criterion.__module__ == tasks.__name__ and (
        kind.init_criterion is not DetectionModel.init_criterion
    )
    if other_task or kind.loss is not BaseModel.loss:
        raise TypeError(
            f"with_ohem mines the detection models of ultralytics, such as YOLOv8, YOLO11 and YOLO26, and not "
            f"{kind.__name__}, which has another loss"
        )
    replaced = "loss" in vars(model) and not isinstance(getattr(vars(model)["loss"], "__self__", None), Mining)
    if replaced or not is_original(BaseModel.loss, tasks, "loss"):
        raise TypeError(
            f"with_ohem would not use the loss of this {kind.__name__}, which was replaced: put ultralytics' back"
        )
