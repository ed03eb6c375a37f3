"""The example of a one-stage detector runs as written."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torchvision_ssd.py"


def test_torchvision_ssd_on_generated_scenes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2", "--batch", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        words = line.replace("step ", "step").split("  ")
        said = dict(word.split(" ") for word in words[1:])
        assert 0 < float(said["chosen"]) < float(said["rois"]) == 2 * 3234
        assert float(said["loss_chosen"]) > float(said["loss_all"]) > 0
        assert float(said["loss"]) > 0
