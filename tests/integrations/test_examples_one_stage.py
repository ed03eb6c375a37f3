"""The example of a one-stage detector, and the page about them, run as written."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.integrations.one_stage import make

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "torchvision_ssd.py"


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


def test_python_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small RetinaNet, for the time that ResNet-50 takes to be made."""
    monkeypatch.setattr("torchvision.models.detection.retinanet_resnet50_fpn", lambda **options: make("retinanet"))
    [block] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "one-stage-detectors.md").read_text(), flags=re.DOTALL
    )
    names: dict[str, object] = {}
    exec(compile(block, "one-stage-detectors.md", "exec"), names)
    assert str(names["model"].mining.sampler).startswith("RatioSampler(")  # type: ignore[attr-defined]
