"""Sliding windows on the command line."""

import shutil
from pathlib import Path

import pytest
import torch

from ohem.config.schema import ProposalConfig
from ohem.experiments.commands import propose_command
from ohem.proposals.windows import sliding_windows
from ohem.training import checkpoint
from ohem.training.logs.metrics_log import read_metrics
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training

WINDOWS = ["--proposals.mode", "sliding", "--proposals.windows", 150, "--proposals.top", 10]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("sliding") / "toy")


@pytest.fixture(scope="module")
def run(toy: Path) -> Path:
    """Returns a run of four steps that was stopped after two."""
    run = toy.parent / "run"
    for steps in (2, 4):
        assert ohem("train", run, *training(toy, steps=steps), *WINDOWS, "--run.log-every", 1).code == 0
    return run


def test_a_resumed_run_is_the_run_that_never_stopped(toy: Path, run: Path, tmp_path: Path) -> None:
    assert ohem("train", tmp_path / "straight", *training(toy, steps=4), *WINDOWS, "--run.log-every", 1).code == 0
    states = [checkpoint.load(folder) for folder in (run, tmp_path / "straight")]
    assert states[0] is not None
    assert states[1] is not None
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())


def test_all_windows_are_rois_and_none_is_stored(toy: Path, run: Path) -> None:
    """Counts the windows and the two objects of the two images; `proposals.top` does not cut them."""
    windows = sliding_windows((64, 80), 150)
    assert len(windows) > 120
    rois = [float(row["rois"]) for row in read_metrics(run)]
    assert rois == [2 * (len(windows) + 2)] * 4
    assert not (toy / "Proposals").exists()
    assert list(toy.rglob("*.safetensors")) == []


def test_every_command_takes_a_run_with_windows(toy: Path, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert ohem("eval", copy, "--loss").code == 0
    assert ohem("loss", copy).code == 0
    images = [toy / "JPEGImages" / f"{stem}.png" for stem in "ab"]
    assert ohem("detect", copy, *images, "--out", tmp_path / "drawn").code == 0
    assert (tmp_path / "drawn" / "b.jpg").exists()
    assert not (toy / "Proposals").exists()


def test_a_run_keeps_its_number_of_windows(toy: Path, run: Path) -> None:
    text = sentence(ohem("train", run, *training(toy, steps=4), *WINDOWS[:3], 140))
    assert "proposals.windows 150, not 140" in text


def test_files_and_windows_are_not_used_together(toy: Path, tmp_path: Path) -> None:
    line = [*training(toy), *WINDOWS, "--proposals.files", tmp_path / "p.json"]
    assert "leave out one of them" in sentence(ohem("train", tmp_path / "run", *line))


def test_nothing_is_made_in_advance() -> None:
    assert "has nothing to make in advance" in sentence(ohem("propose", "x:train", "--mode", "sliding"))
    assert propose_command(["x:train"], (), ProposalConfig(mode=("sliding",))) == []
