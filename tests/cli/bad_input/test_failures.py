"""Trainings that fail: on a full disk, and on numbers that are not finite."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training


@pytest.mark.parametrize("bytes_allowed", [8_000, 400_000])
def test_full_disk(bytes_allowed: int, run: Path, data: Path) -> None:
    """A limit on the size of files replaces a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))
    command = [sys.executable, "-m", "ohem", "train", str(run), *map(str, training(data))]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "checkpoint.pt: File too large" in done.stderr
    assert not list(run.glob(".*"))


def test_loss_that_is_not_finite_stops_and_is_reported(run: Path, data: Path) -> None:
    options = [*training(data, steps=40), "--solver.clip", 0, "--solver.warmup", 0, "--run.checkpoint-every", 1]
    with pytest.warns(RuntimeWarning):
        text = sentence(ohem("train", run, *options, "--solver.lr", 1e30))
    report = json.loads((run / "non-finite-0.json").read_text())
    assert "not finite" in text
    assert report["images"][0] in text
    assert len(report["rois"]) == len(report["losses"]) > 0
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert saved["step"] == report["step"] - 1


def test_gradient_that_is_not_finite_stops_without_a_checkpoint(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_fabric.Fabric.clip_gradients", lambda *_, **__: torch.tensor(torch.inf))
    text = sentence(ohem("train", run, *training(data), "--run.checkpoint-every", 1))
    assert "the gradient is not finite at step 1" in text
    assert not (run / "checkpoint.pt").exists()
