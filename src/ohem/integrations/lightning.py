"""A callback that logs what was mined, of `lightning.pytorch` or `pytorch_lightning`: the one that is imported."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from ohem.losses import OHEMLoss
from ohem.recorder import Recorder


def _callback() -> Any:
    """Returns the class `Callback` of the package that is imported, or else of the one that is installed."""
    loaded = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    installed = [name for name in ("lightning", "pytorch_lightning") if find_spec(name)]
    if not loaded and not installed:
        raise ImportError("MiningCallback needs Lightning: pip install lightning")
    name = loaded[0] if loaded else installed[0]
    return import_module("lightning.pytorch" if name == "lightning" else name).Callback


class MiningCallback(_callback()):  # type: ignore[misc]  # the package is chosen when this module is imported
    """Logs the statistics of mining of a training step, every `log_every_n_steps` of the Trainer.

    It finds the detectors of `with_ohem`, the other `Recorder`s and the `OHEMLoss`es of the module by itself. The keys
    are `mining/chosen` and so on (`ohem.recorder.STATISTICS`; for a loss, `OHEMLoss.mining`). If there are several
    parts, they have the name of the part: `mining/criterion/kept`.

    Args:
        sync_dist: whether to log the mean over all processes. Otherwise every process logs the numbers of its own
            mini-batch, and the loggers write those of rank zero.
    """

    def __init__(self, sync_dist: bool = False) -> None:
        self.sync_dist = sync_dist

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raises `ValueError` if nothing in the module mines."""
        if not _mining(pl_module):
            raise ValueError(
                f"MiningCallback has nothing to log: no part of {type(pl_module).__name__} mines, so call "
                "with_ohem(model, sampler) or make an OHEMLoss in its __init__, or leave out the callback"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the statistics, if the loggers write this step: a GPU must wait until they are computed."""
        if not trainer._logger_connector.should_update_logs:
            return
        parts = _mining(pl_module)
        for name, part in parts.items():
            numbers = part.mining if isinstance(part, OHEMLoss) else part.statistics()
            prefix = f"mining/{name}" if len(parts) > 1 else "mining"
            pl_module.log_dict(
                {f"{prefix}/{key}": number for key, number in numbers.items()}, on_step=True, sync_dist=self.sync_dist
            )


def _mining(module: nn.Module) -> dict[str, Recorder | OHEMLoss]:
    """Returns what mines in `module`, by the name of the part; each `Recorder` once, whatever holds it."""
    parts: dict[str, Recorder | OHEMLoss] = {}
    for name, part in module.named_modules():
        for value in (part, *vars(part).values()):
            if isinstance(value, (Recorder, OHEMLoss)) and all(value is not known for known in parts.values()):
                parts[name] = value
    return parts
