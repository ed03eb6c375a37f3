"""Snapshots and measurements do not change the training."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ohem.data.loader import Example
from ohem.detection.fast_rcnn import FastRCNN
from ohem.training import checkpoint, roi_loss, snapshots
from ohem.training.logs.metrics_log import read_metrics
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training

OBSERVED = ["--run.loss-every", 4, "--run.snapshot-every", 8, "--run.checkpoint-every", 8]


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run of 18 steps that was never stopped."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert ohem("train", run, *training(data, steps=18), *OBSERVED).code == 0
    return run


def weights(run: Path) -> dict[str, Tensor]:
    state = checkpoint.load(run)
    assert state is not None
    rows_of_run: dict[str, Tensor] = state["model"]
    return rows_of_run


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kept(run: Path) -> dict[str, bytes]:
    """Returns the losses over all RoIs and the snapshots of a run, byte for byte, for comparison."""
    paths = [run / roi_loss.NAME, *snapshots.list_snapshots(run).values()]
    return {path.name: path.read_bytes() for path in paths}


def test_it_is_done_every_so_many_steps_and_at_the_last(straight: Path) -> None:
    assert [row.step for row in roi_loss.read(straight)] == [4, 8, 12, 16, 18]
    assert list(snapshots.list_snapshots(straight)) == [8, 16, 18]
    assert same(snapshots.load(snapshots.list_snapshots(straight)[18]), weights(straight))
    assert not same(snapshots.load(snapshots.list_snapshots(straight)[16]), weights(straight))


def test_the_rows_are_of_the_training_images(straight: Path, data: Path) -> None:
    for row in roi_loss.read(straight):
        assert (row.data, row.images) == (f"{data}:train", 6)
        assert row.loss == pytest.approx(row.loss_classifier + row.loss_box_reg, rel=1e-6)
    assert len({row.weights_digest for row in roi_loss.read(straight)}) == 5
    assert len({(row.data_digest, row.rois) for row in roi_loss.read(straight)}) == 1


@pytest.mark.parametrize("recipe", ["demo-ohem", "demo-frcn"])
def test_training_is_the_same_without(data: Path, tmp_path: Path, recipe: str) -> None:
    plain, observed = tmp_path / "plain", tmp_path / "observed"
    options = [*training(data, steps=12, recipe=recipe), "--run.log-every", 1]
    assert ohem("train", plain, *options).code == 0
    assert ohem("train", observed, *options, "--run.loss-every", 3, "--run.snapshot-every", 1).code == 0
    assert same(weights(plain), weights(observed))
    rows = [[{**row, "seconds": ""} for row in read_metrics(run)] for run in (plain, observed)]
    assert rows[0] == rows[1]
    assert not (plain / "snapshots").exists()
    assert not (plain / roi_loss.NAME).exists()


def test_dropout_goes_on_as_if_nothing_had_been_measured(data: Path, tmp_path: Path) -> None:
    options = [*training(data, steps=3, images=1), "--model.backbone", "squeezenet1_0", "--model.dropout", 0.5]
    for name, more in (("plain", []), ("observed", ["--run.loss-every", 1])):
        assert ohem("train", tmp_path / name, *options, *more).code == 0
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "observed"))


def test_training_on_all_rois_of_the_one_image_has_that_loss(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "one", {"train": "a"})
    options = [*training(folder, steps=6, images=1, test=None), "--sampler.name", "all", "--data.no-flip"]
    run = tmp_path / "run"
    assert ohem("train", run, *options, "--run.log-every", 1, "--run.loss-every", 1).code == 0
    measured = {row.step: row for row in roi_loss.read(run)}
    for row in read_metrics(run)[1:]:
        before = measured[int(row["step"]) - 1]  # the loss of a step is computed with the weights before it
        for term in ("loss", "loss_classifier", "loss_box_reg"):
            assert float(row[term]) == pytest.approx(getattr(before, term), rel=1e-4)
        assert float(row["chosen"]) == before.rois


def test_stopped_and_taken_up_again(data: Path, tmp_path: Path, straight: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=12), *OBSERVED).code == 0
    assert ohem("train", run, *training(data, steps=18), *OBSERVED).code == 0
    (run / "snapshots" / "step-0000012.safetensors").unlink()  # the last one of the shorter run
    assert kept(run) == kept(straight)


@pytest.mark.filterwarnings("ignore:.*checkpoint.pt is missing")
def test_what_lies_behind_the_step_that_a_run_goes_on_from_is_made_anew(
    data: Path, tmp_path: Path, straight: Path
) -> None:
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    (run / checkpoint.NAME).unlink()  # the snapshot of step 16 is left
    shutil.copy(run / "snapshots" / "step-0000018.safetensors", run / "snapshots" / "step-0000017.safetensors")
    assert ohem("train", run, *training(data, steps=18), *OBSERVED).code == 0
    assert kept(run) == kept(straight)


@pytest.mark.filterwarnings("ignore:.*checkpoint.pt is missing")
def test_what_was_due_when_a_run_was_killed_is_done_first(data: Path, tmp_path: Path, straight: Path) -> None:
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    (run / checkpoint.NAME).unlink()
    roi_loss.drop_after(run, 12)
    snapshots.drop_after(run, 8)
    assert ohem("train", run, *training(data, steps=18), *OBSERVED).code == 0
    assert kept(run) == kept(straight)


@pytest.mark.parametrize("image", [2, 6])
def test_a_signal_ends_a_measurement_which_is_taken_up_again(
    data: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, image: int
) -> None:
    """Sends the signal at each image of the third measurement; after the last image the row is complete."""
    run, lines = tmp_path / "run", []
    measure = roi_loss.loss_sums

    def interrupted(model: FastRCNN, example: Example) -> Tensor:
        lines.append(example.id)
        if len(lines) == 2 * 6 + image:
            signal.raise_signal(signal.SIGTERM)
        return measure(model, example)

    monkeypatch.setattr(roi_loss, "loss_sums", interrupted)
    stopped = ohem("train", run, *training(data, steps=18), *OBSERVED)
    monkeypatch.undo()
    assert stopped.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 12" in stopped.out
    assert len(lines) == 2 * 6 + image  # no later image was read
    assert [row.step for row in roi_loss.read(run)] == ([4, 8] if image < 6 else [4, 8, 12])
    state = checkpoint.load(run)
    assert state is not None
    assert state["step"] == 12
    assert ohem("train", run, *training(data, steps=18), *OBSERVED).code == 0
    assert kept(run) == kept(straight)
    assert same(weights(run), weights(straight))


def test_a_finished_run_is_measured_on_request(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=5)).code == 0
    before = (run / checkpoint.NAME).read_bytes()
    for _ in range(2):
        assert ohem("train", run, *training(data, steps=5), *OBSERVED).code == 0
        assert [row.step for row in roi_loss.read(run)] == list(snapshots.list_snapshots(run)) == [5]
    assert (run / checkpoint.NAME).read_bytes() == before


@pytest.mark.parametrize("option", ["--run.loss-every", "--run.snapshot-every"])
def test_steps_below_zero(data: Path, tmp_path: Path, option: str) -> None:
    assert f"{option} -1 is out of range" in sentence(ohem("train", tmp_path / "run", *training(data), option, -1))
