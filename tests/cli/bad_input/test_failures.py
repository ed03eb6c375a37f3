"""Trainings that fail: on a full disk, and on numbers that are not finite."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.command_line import Forked, ohem, sentence
from tests.helpers.toy_data import training


@pytest.mark.parametrize("bytes_allowed", [8_000, 400_000])
def test_full_disk(bytes_allowed: int, run: Path, data: Path, tmp_path: Path) -> None:
    """A limit on the size of files replaces a full disk."""
    resource = pytest.importorskip("resource")  # not on Windows
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))
    result = Forked("train", run, *training(data), folder=tmp_path, first=limit).wait()
    assert "checkpoint.pt: File too large" in sentence(result)
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
