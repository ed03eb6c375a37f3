"""Locks: one writer at a time, also when another writer was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ohem.errors import InputError
from ohem.io.locks import WAIT, locked
from ohem.processes import PARENT

HOLD = """
import sys, time
from pathlib import Path
from ohem.io.locks import locked
with locked(Path(sys.argv[1]), "the run x"):
    print("held", flush=True)
    time.sleep(60)
"""
FOLLOW = """
import os, subprocess, sys, time
from ohem.processes import PARENT
child = "import time, ohem.processes as p; p.end_with_parent(); print('up', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child], env={**os.environ, PARENT: str(os.getpid())})
print(process.pid, flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that holds the lock `path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_writer_gets_a_sentence_and_leaves_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with another_process(path):
        for _ in range(2):
            with pytest.raises(InputError, match="the run x is in use by another process"), locked(path, "the run x"):
                raise AssertionError("two hold the lock")


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with another_process(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        with locked(path, "the run x"):
            assert path.exists()
    assert not path.exists()


def test_a_command_of_a_comparison_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT, "30")
    path = tmp_path / ".lock"
    with another_process(path) as process:
        process.send_signal(signal.SIGKILL)
        with locked(path, "the run x"):
            assert process.wait() == -signal.SIGKILL


def test_an_error_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for _ in range(2):
        with pytest.raises(KeyError), locked(path, "the run x"):
            raise KeyError
    assert not path.exists()


def test_a_wait_that_is_not_a_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT, "soon")
    with pytest.raises(InputError, match=f"{WAIT} is 'soon'"), locked(tmp_path / ".lock", "the run x"):
        pass


COUNT = """
import sys, pathlib, ohem.io.locks
lock, count = map(pathlib.Path, sys.argv[1:])
for _ in range(25):
    with ohem.io.locks.locked(lock, "the count", wait=60):
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_a_lock_that_is_removed_lets_in_one_at_a_time(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    line = [sys.executable, "-c", COUNT, str(tmp_path / ".lock"), str(count)]
    running = [subprocess.Popen(line) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert count.read_text() == "75"


def test_a_process_follows_the_one_that_started_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != PARENT}
    parent = subprocess.Popen([sys.executable, "-c", FOLLOW], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    os.kill(child, 0)
    parent.kill()
    parent.communicate()
    last = time.monotonic() + 5
    while _is_alive(child):
        assert time.monotonic() < last
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    """Returns whether the process runs; one that has ended may still have an entry."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
