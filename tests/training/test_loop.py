"""The training loop, on the command line with toy data: resumed runs, processes, accumulation and logs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch

from ohem.config.schema import SolverConfig
from ohem.kernels import choice
from ohem.mining_log import MiningLog
from ohem.rois import RoIs
from ohem.samplers import Losses
from ohem.training import checkpoint, roi_loss, snapshots
from ohem.training.logs import mining
from ohem.training.logs.loggers import TENSORBOARD
from ohem.training.logs.metrics_log import COLUMNS, read_metrics
from ohem.training.optimizer import learning_rate
from tests.helpers.command_line import Forked, ohem, sentence
from tests.helpers.toy_data import make_toy, training

Weights = dict[str, torch.Tensor]
LISTED = ["--sampler.batch-size", 8, "--model.shortlist", 8]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(run: Path) -> Weights:
    state = checkpoint.load(run)
    assert state is not None
    actual: Weights = state["model"]
    return actual


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def timeless(run: Path) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv without the seconds of a step."""
    return [{**row, "seconds": ""} for row in read_metrics(run)]


def mined(run: Path, table: str = "rows") -> dict[str, list[Any]]:
    """Returns the columns of a table of the mining log."""
    columns: dict[str, list[Any]] = parquet.read_table(run / "mining" / f"{table}.parquet").to_pydict()
    return columns


def visits(run: Path) -> dict[int, int]:
    """Returns how often the shortlist of a run has seen each image."""
    state = checkpoint.load(run)
    assert state is not None
    remembered = state[checkpoint.SHORTLIST]
    return dict(sorted(zip(remembered["images"].tolist(), remembered["counts"].tolist(), strict=True)))


@pytest.mark.parametrize("recipe", ["demo-ohem", "demo-frcn"])
def test_10_and_10_steps_are_20(data: Path, tmp_path: Path, recipe: str) -> None:
    straight, halved = tmp_path / "straight", tmp_path / "halved"
    assert ohem("train", straight, *training(data, steps=20, recipe=recipe)).code == 0
    assert ohem("train", halved, *training(data, steps=10, recipe=recipe)).code == 0
    assert not same(weights(straight), weights(halved))
    assert ohem("train", halved, *training(data, steps=20, recipe=recipe)).code == 0
    assert same(weights(straight), weights(halved))
    assert timeless(straight) == timeless(halved)
    for table in ("rows", "images", "periods"):
        assert repr(mined(straight, table)) == repr(mined(halved, table))  # NaN is not NaN


def test_a_resumed_run_has_the_same_shortlist(data: Path, tmp_path: Path) -> None:
    straight, halved, other = tmp_path / "straight", tmp_path / "halved", tmp_path / "other"
    assert ohem("train", straight, *training(data, steps=12), *LISTED).code == 0
    assert ohem("train", halved, *training(data, steps=6), *LISTED).code == 0
    assert ohem("train", halved, *training(data, steps=12), *LISTED).code == 0
    assert same(weights(straight), weights(halved))
    assert visits(straight) == visits(halved)
    assert max(visits(straight).values()) > 2
    assert ohem("train", other, *training(data, steps=12), *LISTED[:2]).code == 0
    assert not same(weights(straight), weights(other))


def test_a_resumed_run_counts_the_steps_of_the_warm_up(data: Path, tmp_path: Path) -> None:
    straight, halved, never = tmp_path / "straight", tmp_path / "halved", tmp_path / "never"
    common = ["--sampler.name", "noise_aware", "--sampler.confidence", 0.1]
    for run, steps, warmup in ((straight, 6, 4), (halved, 3, 4), (halved, 6, 4), (never, 6, 6)):
        assert ohem("train", run, *training(data, steps=steps), *common, "--sampler.warmup", warmup).code == 0
    assert same(weights(straight), weights(halved))
    assert not same(weights(straight), weights(never))


def test_a_resumed_run_draws_the_same_scales(data: Path, tmp_path: Path) -> None:
    scales = ["--data.scales", 48, 56, 64]
    one, straight, halved = tmp_path / "one", tmp_path / "straight", tmp_path / "halved"
    assert ohem("train", one, *training(data, steps=10)).code == 0
    assert ohem("train", straight, *training(data, steps=10), *scales).code == 0
    assert ohem("train", halved, *training(data, steps=5), *scales).code == 0
    assert ohem("train", halved, *training(data, steps=10), *scales).code == 0
    assert same(weights(straight), weights(halved))
    assert not same(weights(straight), weights(one))


def test_the_one_scale_drawn_is_the_one_scale(data: Path, tmp_path: Path) -> None:
    assert ohem("train", tmp_path / "a", *training(data, steps=5)).code == 0
    assert ohem("train", tmp_path / "b", *training(data, steps=5), "--data.scales", 64).code == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_seed_decides_everything(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert ohem("train", tmp_path / name, *training(data, steps=3), "--solver.seed", seed).code == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def killable(data: Path) -> list[Any]:
    return [*training(data, steps=60), "--run.checkpoint-every", 15, "--run.log-every", 5]


@pytest.fixture(scope="module")
def never_killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    assert ohem("train", run, *killable(data)).code == 0
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_killed_half_way_and_repeated_gives_the_same(
    data: Path, tmp_path: Path, never_killed: Path, number: signal.Signals
) -> None:
    killed, options = tmp_path / "killed", killable(data)
    process = Forked("train", killed, *options, folder=tmp_path)
    deadline = time.monotonic() + 120
    while not (rows := read_metrics(killed)) or int(rows[-1]["step"]) < 20:
        assert time.monotonic() < deadline
        assert process.is_alive(), process.wait()
        time.sleep(0.01)
    process.signal(number)
    result = process.wait()
    state = checkpoint.load(killed)
    assert state is not None
    if number == signal.SIGKILL:
        assert result.code == -number
        assert state["step"] % 15 == 0
    else:
        assert result.code == 128 + number
        assert f"stopped by {number.name} after step {state['step']}" in result.out
    assert 15 <= state["step"] < 60
    assert ohem("train", killed, *options).code == 0
    assert same(weights(killed), weights(never_killed))
    assert timeless(killed) == timeless(never_killed)


def test_a_finished_run_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data)).code == 0
    before = (run / "checkpoint.pt").read_bytes()
    assert ohem("train", run, *training(data)).code == 0
    assert (run / "checkpoint.pt").read_bytes() == before


@pytest.mark.usefixtures("all_channels")
def test_two_processes_are_one(data: Path, tmp_path: Path) -> None:
    """The two are started by `--devices`; test_processes and test_nodes start them as torchrun does."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [
        *training(data, steps=5),
        "--solver.accumulate",
        "--run.loss-every",
        2,
        "--run.snapshot-every",
        4,
        *["--run.loggers", "tensorboard", "--run.pictures-every", 2],
        *LISTED,
    ]
    assert ohem("train", one, *options).code == 0
    line = [sys.executable, "-m", "ohem", "train", str(two), *map(str, options), "--devices", "2"]
    subprocess.run(line, env=ENVIRONMENT, check=True, capture_output=True, timeout=180)
    trained = weights(two)
    for name, value in weights(one).items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)
    assert [row["step"] for row in read_metrics(two)] == ["5"]
    assert visits(two) == visits(one)
    ours, theirs = (
        dict(zip(mined(run, "images")["image"], mined(run, "images")["visits"], strict=True)) for run in (two, one)
    )
    assert ours == theirs
    for column in ("first_step", "steps", "minable"):
        assert mined(two, "periods")[column] == mined(one, "periods")[column]
    assert list(snapshots.list_snapshots(two)) == [4, 5]
    assert len(list((two / TENSORBOARD).iterdir())) == 1  # of the first process
    for row, other in zip(roi_loss.read(two), roi_loss.read(one), strict=True):
        assert (row.step, row.images, row.rois) == (other.step, other.images, other.rois)
        assert row.loss == pytest.approx(other.loss, rel=1e-3)


def test_images_that_processes_cannot_share(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_fabric.Fabric.world_size", 2)
    text = sentence(ohem("train", tmp_path / "run", *training(data, images=3)))
    assert "--solver.images 3 cannot be shared by 2 processes" in text


def test_metrics_have_the_mined_rois(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--sampler.nms-iou", 0.9, "--sampler.batch-size", 4]
    assert ohem("train", run, *training(data, steps=25), *options).code == 0
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == ["10", "20", "25"]
    assert tuple(rows[0]) == COLUMNS
    last = {name: float(value) for name, value in rows[-1].items()}
    assert 0 < last["chosen"] <= last["survivors"] <= last["rois"]
    assert 0 <= last["foreground"] <= 1
    assert 0 <= last["far"] <= 1
    assert last["loss_chosen"] >= last["loss_all"]
    assert last["loss"] == pytest.approx(last["loss_classifier"] + last["loss_box_reg"], rel=1e-4)


def test_a_sampler_that_ignores_losses_leaves_their_columns_empty(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=1, recipe="demo-frcn"), "--sampler.batch-size", 4).code == 0
    row = read_metrics(run)[-1]
    assert row["loss_all"] == row["survivors"] == ""
    assert float(row["foreground"]) * float(row["chosen"]) <= 2  # a quarter of 4, in each of two images


@pytest.mark.parametrize(
    "options",
    [
        ["--model.implementation", "loss_layer"],
        ["--model.box-normalisation", "empirical"],
        ["--sampler.name", "all"],
        ["--sampler.no-per-image", "--sampler.suppress", "label"],
        ["--solver.accumulate"],
        ["--run.precision", "bf16-mixed"],
        ["--data.workers", "1"],
        ["--data.no-flip", "--sampler.nms-iou", "1"],
        ["--data.scales", "48", "64", "--test.scales", "48", "64", "--test.iterations", "2", "--test.voting"],
    ],
)
def test_every_option_trains_and_evaluates(data: Path, tmp_path: Path, options: list[str]) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=3), *options).code == 0
    assert ohem("eval", run, "--loss").code == 0


def test_boxes_keep_their_precision_where_the_arithmetic_is_mixed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that boxes are not rounded to bfloat16, which would move them by pixels."""
    seen: list[RoIs] = []

    class Keeper(MiningLog):
        def __call__(self, rois: RoIs, losses: Losses) -> torch.Tensor:
            seen.append(rois)
            return super().__call__(rois, losses)

    monkeypatch.setattr(mining, "MiningLog", Keeper)
    for precision in ("32-true", "bf16-mixed"):
        options = [{64: 300, 80: 500}.get(word, word) for word in training(data, steps=1)]  # type: ignore[call-overload]
        assert ohem("train", tmp_path / precision, *options, "--run.precision", precision).code == 0
    exact, mixed = seen
    assert mixed.boxes.dtype == torch.float32
    assert torch.equal(mixed.boxes, exact.boxes)
    assert torch.equal(mixed.targets, exact.targets)


def test_a_run_may_go_on_in_another_precision(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps, precision in ((2, "bf16-mixed"), (4, "32-true"), (6, "bf16-mixed")):
        assert ohem("train", run, *training(data, steps=steps), "--run.precision", precision).code == 0
    assert [row["step"] for row in read_metrics(run)] == ["2", "4", "6"]


def test_a_run_may_start_from_the_weights_of_another(data: Path, tmp_path: Path) -> None:
    """Checks that the scale of the features comes with the head."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert ohem("train", first, *training(data, steps=3)).code == 0
    options = [*training(data, steps=1), "--model.weights", first / "checkpoint.pt", "--solver.lr", 0]
    assert ohem("train", second, *options).code == 0
    before, after = ({k: v for k, v in weights(run).items() if k.startswith("backbone.")} for run in (first, second))
    assert before["backbone.feature_scale"] != 1
    assert same(before, after)


def test_processes_that_would_wait_for_proposals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_toy(tmp_path / "toy")
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = sentence(ohem("train", tmp_path / "run", *training(folder)))
    assert f"{folder} has no proposals yet" in text
    assert "`ohem propose`" in text
    assert not (tmp_path / "run").exists()


def test_learning_rate_warms_up_and_decays() -> None:
    config = SolverConfig(lr=1.0, warmup=4, decay_every=10, gamma=0.1)
    rates = [learning_rate(config, step) for step in (0, 1, 3, 4, 9, 10, 19, 20)]
    assert rates == pytest.approx([0.25, 0.5, 1, 1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("fastest", "line"), [("int8", "all RoIs are ranked in int8\n"), ("float32", "ranked in float32, since")]
)
def test_a_training_reports_the_precision_of_the_ranking(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fastest: str, line: str
) -> None:
    monkeypatch.setattr("ohem.kernels.low_precision._fastest_on_cpu", lambda: fastest)
    assert line in ohem("train", tmp_path / "run", *training(data, steps=1), "--model.rescore-top", 8).out
    assert "ranked in" not in ohem("train", tmp_path / "exact", *training(data, steps=1)).out


def test_a_resumed_training_multiplies_by_the_kernels_of_its_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_chosen", {"linear layers": "oneDNN"})
    ohem("train", tmp_path / "run", *training(data, steps=1))
    choice.forget()
    ohem("train", tmp_path / "run", *training(data, steps=2))
    assert choice.choices()["linear layers"] == "oneDNN"
