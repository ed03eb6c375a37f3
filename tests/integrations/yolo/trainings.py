"""Trainings of ultralytics in a process of their own: `python -m tests.integrations.yolo.trainings FOLDER`.

Its libraries emit warnings, and the process ends without `ohem`, to load what was saved.
"""

import json
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.integrations.yolo.models import architecture

from ultralytics import YOLO  # isort: skip  # after its settings
from ultralytics.utils.callbacks import base  # isort: skip

from ohem import with_ohem
from ohem.mining_log import MiningLog

OPTIONS = {"batch": 4, "imgsz": 64, "device": "cpu", "plots": False, "val": False, "workers": 0}
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "ultralytics_yolo.py"


class Stopped(Exception):
    """Ends a training after its first epoch."""


class Counting:
    """Chooses the first ten anchors, and counts its calls."""

    calls = 0

    def __call__(self, rois: Any, losses: Any) -> Tensor:
        self.calls += 1
        return torch.arange(10)


def stop(_: Any) -> None:
    raise Stopped


def load_without_ohem(path: Path) -> str:
    """Returns the type of the model in the file `path`, loaded where `ohem` cannot be imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "ohem"]:
        del sys.modules[name]
    sys.modules["ohem"] = None  # type: ignore[assignment]
    assert b"cohem." not in path.read_bytes()  # a class in a pickle; the message of the git commit may say ohem
    return type(torch.load(path, weights_only=False)["ema"]).__name__


def run(folder: Path) -> None:
    sys.argv = [str(EXAMPLE), "--epochs", "1", "--out", str(folder)]
    runpy.run_path(str(EXAMPLE), run_name="__main__")

    yaml, data = folder / "yolo26n.yaml", str(folder / "data" / "data.yaml")
    yaml.write_text(json.dumps({**architecture("yolo26"), "nc": 1}))  # JSON is YAML
    sampler = Counting()
    model = with_ohem(YOLO(yaml), MiningLog(sampler, folder / "mining"))
    model.add_callback("on_model_save", stop)
    with suppress(Stopped):
        model.train(data=data, epochs=3, project=str(folder), name="stopped", **OPTIONS)
    print("calls in the first epoch:", sampler.calls)
    last = folder / "stopped" / "weights" / "last.pt"
    kept = last.read_bytes()
    model = with_ohem(YOLO(last), sampler)
    model.add_callback("on_train_epoch_end", stop)
    with suppress(Stopped):
        model.train(resume=True)
    print("calls after the resumed epoch:", sampler.calls)

    base.default_callbacks["on_fit_epoch_end"].append(stop)
    arguments = ["resume", f"model={last}", "ohem.sampler=ohem", "ohem.batch_size=7", "ohem.nms_iou=1"]
    sys.argv = ["yolo", "detect", "train", *arguments]
    with suppress(Stopped):
        runpy.run_module("ohem.integrations.yolo", run_name="__main__")

    last.write_bytes(kept)
    print("loaded:", load_without_ohem(last))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
