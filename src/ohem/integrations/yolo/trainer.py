"""Mining in the trainer of ultralytics: it makes its own model, which a callback changes before the first step."""

from typing import Any, NoReturn

from ultralytics.engine.model import Model
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from ohem.integrations.registry import with_ohem
from ohem.mining_log import MiningLog
from ohem.recorder import Recorder

START, EPOCH_END = "on_pretrain_routine_end", "on_train_epoch_end"


class MineInTrainer:
    """Makes the model of a trainer mine when its training starts, and logs what was mined at the end of each epoch.

    The trainer sends its callbacks to the processes of a training on several GPUs, so that each of them mines.

    Args:
        recorder: chooses the anchors.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def start(self, trainer: Any) -> None:
        """Makes the trainer's model mine."""
        with_ohem(unwrap_model(trainer.model), self.recorder)

    def log(self, _: Any) -> None:
        """Logs the last mini-batch of an epoch, and writes a mining log."""
        numbers = self.recorder.statistics()
        if RANK not in (-1, 0) or not numbers:
            return
        if isinstance(self.recorder, MiningLog):
            self.recorder.save()
        line = (
            f"ohem: {numbers['chosen']:.0f} of {numbers['rois']:.0f} anchors of the last mini-batch chosen, "
            f"{numbers['foreground']:.0%} foreground"
        )
        if "loss_chosen" in numbers:  # the sampler used the losses
            line += f", mean loss {numbers['loss_chosen']:.3g} (all: {numbers['loss_all']:.3g})"
        LOGGER.info(line)

    def add_to(self, callbacks: dict[str, list[Any]]) -> None:
        """Adds the callbacks to `callbacks`, in place of those of an earlier call."""
        for event, callback in ((START, self.start), (EPOCH_END, self.log)):
            others = [c for c in callbacks[event] if not isinstance(getattr(c, "__self__", None), MineInTrainer)]
            callbacks[event] = [*others, callback]


def mine_in_trainer(model: Model, recorder: Recorder) -> None:
    """Makes every training of `model`, an object `YOLO(...)`, mine."""
    MineInTrainer(recorder).add_to(model.callbacks)
    model.tune = _refuse_to_tune


def _refuse_to_tune(*_: Any, **__: Any) -> NoReturn:
    raise TypeError("tune starts `yolo train`, which does not mine: tune a model without with_ohem")
