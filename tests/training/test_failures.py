"""Failures during a run: the checkpoint of the present step is written first, and the run can be resumed from it."""

import errno
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from ohem.data.loader import TrainingExamples
from ohem.errors import InputError
from ohem.training import checkpoint, hooks, roi_loss, snapshots
from ohem.training.logs.metrics_log import NAME as METRICS
from ohem.training.logs.metrics_log import MetricsLog, read_metrics
from tests.helpers.command_line import Forked, ohem, sentence
from tests.helpers.toy_data import training

OPTIONS = ["--run.log-every", 1, "--run.snapshot-every", 2, "--run.loss-every", 3, "--run.checkpoint-every", 100]
STEPS = 6


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run without a failure."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert ohem("train", run, *training(data, steps=STEPS), *OPTIONS).code == 0
    return run


def state(run: Path) -> dict[str, Any]:
    actual = checkpoint.load(run)
    assert actual is not None
    return actual


def assert_same(run: Path, other: Path) -> None:
    one, two = state(run), state(other)
    assert one["step"] == two["step"]
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())
    rows = [[{**row, "seconds": ""} for row in read_metrics(item)] for item in (run, other)]
    assert rows[0] == rows[1]
    assert roi_loss.read(run) == roi_loss.read(other)
    files = [
        {step: path.read_bytes() for step, path in snapshots.list_snapshots(item).items()} for item in (run, other)
    ]
    assert files[0] == files[1]


def full(path: str) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device", path)


def once_full(original: Callable[..., Any], at: Callable[..., bool]) -> Callable[..., Any]:
    """Returns `original` with a full disk in the calls that `at` names."""

    def called(*arguments: Any) -> Any:
        return full("the file") if at(*arguments) else original(*arguments)

    return called


FAULTS: dict[str, tuple[int, Any, str, Callable[..., bool]]] = {
    "a row of metrics.csv": (4, MetricsLog, "_append", lambda log, text: text.startswith("4,")),
    "a snapshot": (4, snapshots, "save_snapshot", lambda run, step, weights: step == 4),
    "a measurement": (3, roi_loss, "loss_sums", lambda model, example: example.id == "d"),
    "loss_all.csv": (3, roi_loss, "add_row", lambda run, row: row.step == 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_disk_costs_no_step(
    fault: str, data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (step, place, name, at) = tmp_path / "run", FAULTS[fault]
    monkeypatch.setattr(place, name, once_full(getattr(place, name), at))
    text = sentence(ohem("train", run, *training(data, steps=STEPS), *OPTIONS))
    assert "the file: No space left on device: choose another place, or make room" in text
    assert f"repeat the command to resume from step {step}" in text
    assert state(run)["step"] == step
    monkeypatch.undo()
    assert ohem("train", run, *training(data, steps=STEPS), *OPTIONS).code == 0
    assert_same(run, straight)


def test_both_are_said_where_the_checkpoint_cannot_be_written_either(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(hooks.snapshots, "save_snapshot", lambda *_: full("the snapshot"))
    monkeypatch.setattr(checkpoint, "save", lambda *_, **__: full("the checkpoint"))
    text = sentence(ohem("train", run, *training(data, steps=STEPS), *OPTIONS))
    assert "the snapshot: No space" in text
    assert "the checkpoint of step 2 could not be written either (the checkpoint: No space" in text
    assert "from step 0" in text


@pytest.mark.parametrize(
    ("error", "workers"),
    [
        (InputError("c.png is damaged"), 0),
        (InputError("c.png is damaged"), 1),
        (MemoryError(), 0),
        (MemoryError(), 1),
        (OSError(errno.EIO, "disk", "c.png"), 0),
    ],
)
def test_an_image_that_fails_in_mid_run(
    error: Exception, workers: int, data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options = [*training(data, steps=STEPS), *OPTIONS, "--data.workers", workers]
    original = TrainingExamples.__getitem__

    def failing(self: TrainingExamples, position: int) -> Any:
        if position >= 2 * 4:  # two images a step: the fifth step
            raise error
        return original(self, position)

    monkeypatch.setattr(TrainingExamples, "__getitem__", failing)
    text = sentence(ohem("train", run, *options))
    assert ("not enough memory" if isinstance(error, MemoryError) else "c.png") in text
    assert "repeat the command to resume from step 4" in text
    assert state(run)["step"] == 4
    monkeypatch.undo()
    assert ohem("train", run, *options).code == 0
    assert_same(run, straight)


def test_a_damaged_metrics_file_is_written_anew(data: Path, straight: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    (run / METRICS).write_bytes(b"\x00\xff")
    assert ohem("train", run, *training(data, steps=STEPS), *OPTIONS).code == 0
    assert (run / METRICS).read_bytes() == (straight / METRICS).read_bytes()


def test_leftovers_of_a_killed_process_are_removed(data: Path, straight: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for path in (run, run / snapshots.FOLDER):
        (path / f".any.{child.pid}.tmp").touch()
    assert ohem("train", run, *training(data, steps=STEPS + 1), *OPTIONS).code == 0
    assert ohem("eval", run).code == 0
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("content", [[1], {"weight": torch.zeros(3)}])
@pytest.mark.parametrize("command", ["train", "eval", "detect", "loss", "bootstrap"])
def test_another_torch_file_as_checkpoint(
    command: str, content: Any, data: Path, straight: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    torch.save(content, run / checkpoint.NAME)
    picture = data / "JPEGImages" / "a.png"
    more = {"train": [*training(data, steps=STEPS), *OPTIONS], "detect": [picture, "--out", tmp_path / "out"]}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "no whole checkpoint" in sentence(ohem(command, run, *more.get(command, [])))
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert before.keys() == after.keys()


def test_two_processes_stop_together_and_say_it_once(data: Path, tmp_path: Path) -> None:
    """The two are started as torchrun starts them."""
    folder, run = Path(shutil.copytree(data, tmp_path / "toy")), tmp_path / "run"
    options = [*training(folder, steps=5000), "--run.log-every", 1, "--run.checkpoint-every", 5000]
    with socket.create_server(("127.0.0.1", 0)) as server:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    both = []
    for rank in "01":
        (tmp_path / rank).mkdir()
        place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = {**meeting, **place, "TORCHELASTIC_RUN_ID": "test"}
        both.append(Forked("train", run, *options, folder=tmp_path / rank, environment=environment))
    deadline = time.monotonic() + 120
    while not (run / METRICS).exists() or len((run / METRICS).read_bytes().splitlines()) < 5:
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in both), [process.wait() for process in both]
        time.sleep(0.01)
    (folder / "JPEGImages" / "c.png").unlink()
    results = [process.wait() for process in both]
    assert [result.code for result in results] == [2, 2], results
    message = "".join(result.err for result in results)
    assert message.count("c.png cannot be opened") == 1
    assert "Traceback" not in message
    assert state(run)["step"] == len(read_metrics(run))
