"""The example runs as its docstring says, for a few steps."""

import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from tests.toy import NAMES, make_toy

SCRIPT = Path(__file__).parents[2] / "examples" / "torchvision_faster_rcnn.py"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_generated_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(monkeypatch, "--steps", 1, "--images", 1)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step 1 loss_classifier ")
    assert " chosen 64 " in out[1]
    counts = out[2].removeprefix("IoU of the chosen, by tenths: ")
    assert sum(map(int, counts.strip("[]").split(","))) == 64


def test_a_folder_in_the_layout_of_voc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_toy(tmp_path / "toy")
    run(monkeypatch, "--data", f"{data}:train", "--steps", 2, "--save", tmp_path / "weights.pt")
    assert "step 2 loss_classifier" in capsys.readouterr().out
    plain = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=len(NAMES) + 1)
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
