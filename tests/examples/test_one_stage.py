"""The example of a one-stage detector runs as its docstring says, for a few steps."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "torchvision_ssd.py"
LINE = re.compile(
    r"step \d: loss (?P<loss>[\d.]+); (?P<chosen>\d+) of (?P<anchors>\d+) anchors chosen, "
    r"mean loss (?P<loss_chosen>[\d.]+) \(all anchors: (?P<loss_all>[\d.]+)\)"
)


def test_torchvision_ssd_on_generated_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2", "--batch", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("Recorder(RatioSampler(")
    for line in lines[:2]:
        match = LINE.fullmatch(line)
        assert match is not None
        numbers = {name: float(value) for name, value in match.groupdict().items()}
        assert 0 < numbers["chosen"] < numbers["anchors"] == 2 * 3234
        assert numbers["loss_chosen"] > numbers["loss_all"] > 0
        assert numbers["loss"] > 0
