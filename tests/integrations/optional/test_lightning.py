"""`MiningCallback` in a real Trainer of Lightning."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ohem import AllSampler, OHEMLoss, OHEMSampler, Recorder, with_ohem
from tests.helpers.one_stage import batch, make
from tests.integrations.optional import import_quietly

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def lightning() -> Any:
    return import_quietly("pytorch_lightning")


def train(
    lightning: Any, folder: Path, parts: dict[str, Any], steps: int = 2, every: int = 1
) -> list[dict[str, float]]:
    """Trains a module with these parts; returns what was logged at each logged step."""
    logged: list[dict[str, float]] = []

    class Logger(lightning.loggers.logger.DummyLogger):  # type: ignore[misc, name-defined]
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append(metrics)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict(parts)
            self.weight = nn.Parameter(torch.ones(()))

        def training_step(self, data: Any, index: int) -> Tensor:
            loss = self.weight * 0
            for name, part in self.parts.items():
                if name == "detector":
                    loss = loss + sum(part(*data).values())
                elif name == "criterion":
                    loss = loss + part(self.weight * torch.arange(8.0), torch.zeros(8))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    callback = importlib.import_module("ohem.integrations.lightning").MiningCallback()
    options = {"logger": Logger(), "callbacks": [callback], "default_root_dir": folder, "accelerator": "cpu"}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=steps, log_every_n_steps=every, **options, **quiet)
    trainer.fit(Module(), DataLoader([batch("two images")] * steps, batch_size=None))
    return logged


def test_statistics_of_a_detector_are_logged(lightning: Any, tmp_path: Path) -> None:
    model = with_ohem(make("ssd"), OHEMSampler(8, nms_iou=None))
    model.head.mining = model.mining  # as the RoI heads of Faster R-CNN have: it is logged once
    logged = train(lightning, tmp_path, {"detector": model})
    mined = [{key: value for key, value in step.items() if key.startswith("mining/")} for step in logged]
    assert len(mined) == 2
    assert mined[-1] == pytest.approx({f"mining/{key}": value for key, value in model.mining.statistics().items()})
    assert mined[0]["mining/chosen"] == 16


def test_parts_have_names_if_there_are_several(lightning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Recorder] = []
    statistics = Recorder.statistics
    monkeypatch.setattr(Recorder, "statistics", lambda self: computed.append(self) or statistics(self))
    parts = {"detector": with_ohem(make("ssd"), AllSampler()), "criterion": OHEMLoss(nn.L1Loss(reduction="none"), 0.5)}
    logged = train(lightning, tmp_path, parts, every=2)
    assert len(logged) == len(computed) == 1  # and not for the step that is not logged
    assert logged[0]["mining/parts.criterion/kept"] == 4
    assert logged[0]["mining/parts.detector/chosen"] == logged[0]["mining/parts.detector/rois"]


def test_module_without_mining_is_refused(lightning: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no part of Module mines, so call with_ohem"):
        train(lightning, tmp_path, {"layer": nn.Linear(1, 1)})


def test_callback_is_of_the_package_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("lightning.pytorch")
    other.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning.pytorch", other)
    monkeypatch.delitem(sys.modules, "ohem.integrations.lightning", raising=False)
    callback = importlib.import_module("ohem.integrations.lightning").MiningCallback
    monkeypatch.delitem(sys.modules, "ohem.integrations.lightning")
    assert issubclass(callback, other.Callback)  # type: ignore[attr-defined]
