"""The example runs as its docstring says, for a few steps."""

import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from tests.helpers.toy_data import NAMES, make_toy

SCRIPT = Path(__file__).parents[2] / "examples" / "torchvision_faster_rcnn.py"


def run_example(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_generated_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_example(monkeypatch, "--steps", 1, "--images", 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 1: loss ")
    assert "; 128 of " in lines[0]
    assert lines[1].startswith("Recorder(OHEMSampler(batch_size=128")
    counts = lines[-1].rpartition(": ")[2]
    assert sum(map(int, counts.strip("[]").split(","))) == 128


def test_data_set_in_voc_layout_and_saved_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_toy(tmp_path / "toy")
    run_example(monkeypatch, "--data", f"{data}:train", "--steps", 2, "--save", tmp_path / "weights.pt")
    assert "step 2: loss " in capsys.readouterr().out
    plain = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=len(NAMES) + 1)
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
