"""Jobs: finished work is not repeated, and an interrupted command can be resumed."""

import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from ohem.experiments import runner
from ohem.experiments.runner import Job
from ohem.processes import PARENT
from tests.experiments.test_compare import NAMES, compare_arguments
from tests.helpers.command_line import Forked, ohem


def test_job_is_done_again_if_its_files_are_damaged_or_its_data_changed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    files = [run / "eval.json", run / "metrics.csv", run / "eval.line"]
    for path in files[:2]:
        path.write_text(f"{path.name} 93.5\n")
    job = Job(run, ["train", "run"], {files[0]: ["eval", "run"]}, "of these data")
    assert job.remaining() == [["train", "run"], ["eval", "run"]]
    job.mark_done(["eval", "run"])
    assert job.remaining() == []
    assert replace(job, data_digest="of other data").remaining()
    for path in files:
        before = path.read_bytes()
        for damaged in (before.replace(b"3", b"2"), b"\xff", b""):
            path.write_bytes(damaged)
            assert job.remaining()
        path.unlink()
        assert job.remaining()
        path.write_bytes(before)
        assert job.remaining() == []


def test_job_without_reports_has_no_map(tmp_path: Path) -> None:
    evaluations = {tmp_path / "eval.json": ["eval", "run"], tmp_path / "submission": ["eval", "run", "--submit"]}
    assert Job(tmp_path, ["train", "run"], evaluations).maps() == []


@pytest.mark.parametrize(
    ("output", "news"),
    [("step 1/9\nstep 2/9", "run: step 2/9\n"), ("wrote\n      ohem detect run IMAGE", ""), ("", "")],
    ids=["progress", "hint", "nothing"],
)
def test_last_line_of_a_log_is_printed_once(
    output: str, news: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    log.write_text(output)
    job = runner._RunningJob(Job(tmp_path / "run", ["train"]), 0, log, Future())
    for _ in range(2):
        job.print_news()
    assert capsys.readouterr().err == news


class ForkedCommand(Forked):
    """A command as a fork, as the runner needs it: an interpreter of its own takes 5 seconds to import PyTorch."""

    def __init__(self, command: Sequence[str], *, stdout: BinaryIO, env: Mapping[str, str], **_: object) -> None:
        own = {name: value for name, value in env.items() if name != PARENT}  # whose child it is not
        super().__init__(*command[command.index("ohem") + 1 :], outputs=[Path(stdout.name)] * 2, environment=own)

    def wait(self, seconds: float | None = None) -> int:  # type: ignore[override]
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("ohem", seconds or 0)
        return self.process.exitcode

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)


def run_here(command: Sequence[str], **_: object) -> SimpleNamespace:
    """Runs a command in this process."""
    return SimpleNamespace(returncode=ohem(*command[command.index("ohem") + 1 :]).code)


def test_signal_leaves_checkpoints_from_which_the_command_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that are processes of `python -m ohem` are stopped in tests/experiments/test_cluster.py."""
    forks = SimpleNamespace(Popen=ForkedCommand, run=run_here, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(runner, "subprocess", forks)
    logs = [tmp_path / "out" / f"{name}-0" / "metrics.csv" for name in NAMES]

    def stop() -> None:
        while not all(path.exists() and path.read_text().count("\n") > 2 for path in logs):
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    result = ohem(*compare_arguments(data, tmp_path / "out", steps=100_000), "--run.log-every", 1)
    stopper.join(1)
    assert result.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: repeat the command to continue" in result.out
    assert all(path.with_name("checkpoint.pt").exists() for path in logs)
