"""Each example runs as written, in seconds, and shows what it promises."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_segmentation_finds_the_disc(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("segmentation").main(steps=40) > 0.8
    assert "of 32" in capsys.readouterr().out


def test_plain_loop_finds_the_rare_label() -> None:
    assert load("plain_loop").main(steps=60) > 0.9


def test_lightning_logs_what_was_mined(tmp_path: Path) -> None:
    """In a process of its own: the libraries warn of each other's deprecations."""
    command = [sys.executable, str(EXAMPLES / "lightning_module.py"), "--steps", "2", "--logs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'mining/chosen': 128.0" in done.stdout
    assert list(tmp_path.rglob("events.out.tfevents.*"))
