"""Jobs: finished work is not repeated, and an interrupted command can be resumed."""

import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from ohem.experiments import runner
from ohem.experiments.runner import Job
from tests.experiments.test_compare import NAMES, compare_arguments
from tests.helpers.command_line import Forked
from tests.helpers.toy_data import make_toy


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


def test_signal_leaves_checkpoints_from_which_the_command_continues(tmp_path: Path) -> None:
    arguments = compare_arguments(make_toy(tmp_path / "toy"), tmp_path / "out", steps=100_000)
    process = Forked(*arguments, "--run.log-every", 1, folder=tmp_path)
    logs = [tmp_path / "out" / f"{name}-0" / "metrics.csv" for name in NAMES]
    while not all(path.exists() and path.read_text().count("\n") > 2 for path in logs):
        assert process.is_alive(), process.wait()
        time.sleep(0.1)
    process.signal(signal.SIGTERM)
    result = process.wait()
    assert result.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: repeat the command to continue" in result.out
    assert all(path.with_name("checkpoint.pt").exists() for path in logs)
