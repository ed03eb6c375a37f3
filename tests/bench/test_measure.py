"""Methods in turns, each in its own process, and failures of a worker; all without torch."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ohem.bench.measure import _fits, measure
from ohem.bench.memory import _left_of_limits, available
from ohem.errors import InputError
from tests.helpers.workloads import allocating, doing, noting, unbuilt

MB = 1_000_000
# Tests in the background of a shell ignore Ctrl-C, and so do their children.
PROGRAM = """
import signal, sys
from functools import partial
from pathlib import Path
from ohem.bench.measure import measure
from tests.helpers.workloads import doing, noting
log = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
measure({"a": partial(noting, "a", log), "b": partial(doing, "sleep", log)}, steps=2, warmup=0, progress=False)
"""


def _spawned() -> list[str]:
    """Returns the names of the worker processes that are left, without those of selective search in other tests."""
    return [child.name for child in multiprocessing.active_children() if child.name.startswith("Spawn")]


@pytest.mark.parametrize(
    ("sequential", "order"),
    [
        (False, "a:0 b:0 c:0 b:1 c:1 a:1 c:2 a:2 b:2 c:left b:left a:left"),
        (True, "a:0 a:1 a:2 a:left b:0 b:1 b:2 b:left c:0 c:1 c:2 c:left"),
    ],
)
def test_methods_take_turns_unless_sequential(tmp_path: Path, sequential: bool, order: str) -> None:
    log = tmp_path / "log"
    measured = measure({name: partial(noting, name, log) for name in "abc"}, steps=2, warmup=1, sequential=sequential)
    assert log.read_text().split() == order.split()
    assert list(measured) == ["a", "b", "c"]
    pids = set()
    for method in measured.values():
        assert (len(method.warmup_seconds), len(method.seconds), len(method.cpu_seconds)) == (1, 2, 2)
        assert min(method.warmup_seconds + method.seconds) > 0
        assert [batch["step"] for batch in method.batches] == [0, 1, 2]
        assert (method.threads, method.device) == (None, "cpu")
        pids |= {batch["pid"] for batch in method.batches}
    assert len(pids | {os.getpid()}) == 4
    assert not _spawned()


def test_methods_that_do_not_fit_wait_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ohem.bench.measure._fits", lambda workers: len(workers) < 2)
    log = tmp_path / "log"
    measured = measure({name: partial(noting, name, log) for name in "abc"}, steps=2, warmup=0)
    assert log.read_text().split() == ["a:0", "b:0", "b:1", "a:1", "b:left", "a:left", "c:0", "c:1", "c:left"]
    assert list(measured) == ["a", "b", "c"]
    assert "Memory holds a, b at once: the other methods are measured after them." in capsys.readouterr().err


def test_a_method_fits_if_memory_holds_more_than_the_highest_peak() -> None:
    def worker(peak: int, free: int | None) -> Any:
        step = SimpleNamespace(memory=SimpleNamespace(peak=peak), available=free)
        return SimpleNamespace(steps=[step])

    assert _fits([worker(4 * MB, 9 * MB), worker(2 * MB, 6 * MB)])
    assert not _fits([worker(4 * MB, 9 * MB), worker(2 * MB, 6 * MB - 1)])
    assert _fits([worker(4 * MB, None)])  # a system that does not report it


def test_the_rest_is_sequential_if_memory_runs_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method that fails alone ends the measurement; here the other is done before."""
    log = tmp_path / "log"
    methods = {"one": partial(noting, "one", log), "other": partial(doing, "memory", log)}
    with pytest.raises(InputError, match=r"^other, step 2: DefaultCPUAllocator"):
        measure(methods, steps=2, warmup=0)
    assert log.read_text().split() == ["one:0", "one:0", "one:1", "one:left"]
    assert "The methods that are left are measured one after the other." in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere the peak includes the parent")
def test_memory_is_only_that_of_the_worker() -> None:
    ours = bytearray(400 * MB)
    method = measure({"a": partial(allocating, 100 * MB)}, steps=1, warmup=0)["a"]
    assert len(ours) > method.peak.resident_peak
    assert method.peak.resident_peak - method.built.resident >= 95 * MB  # the kernel counts pages in batches
    assert method.peak.resident < method.peak.resident_peak
    assert method.peak.peak == method.peak.resident_peak
    assert method.built.now == method.built.resident


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not report it")
def test_free_memory_is_at_most_that_of_the_machine() -> None:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < (available("cpu") or 0) <= int(lines["MemTotal"].split()[0]) * 1024


def test_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert list(_left_of_limits(tmp_path)) == []
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert list(_left_of_limits(tmp_path)) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert list(_left_of_limits(tmp_path)) == [400]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("bad input", "one, step 2: x.jpg is damaged: replace it"),
        ("memory", "one, step 2: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes: leave"),
        ("kill", "one: its process was killed, probably because the system ran out of memory: leave this method out"),
        ("exit", "one: its process ended with exit status 3 "),
        ("bug", "one: its process ended with exit status 1 "),
    ],
)
def test_failure_of_a_worker_is_reported_in_one_sentence(
    tmp_path: Path, failure: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    methods = {"one": partial(doing, failure, tmp_path / "log"), "other": partial(doing, "nothing", tmp_path / "log")}
    with pytest.raises(InputError) as error:
        measure(methods, steps=2, warmup=0)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not _spawned()
    assert ("ZeroDivisionError: of our own" in capfd.readouterr().err) == (failure == "bug")


def test_worker_that_cannot_be_built_is_reported_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"^one, building: w\.pth does not fit"):
        measure({"one": unbuilt}, steps=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches all processes; the other signals reach only the one that measures."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROGRAM, str(log)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_until(lambda: process.poll() is not None or (log.exists() and "sleep:" in log.read_text()))
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            _, error = process.communicate(timeout=60)
            assert process.returncode == -number
            assert error.count("Traceback") == (1 if number == signal.SIGINT else 0), error
            _wait_until(lambda: not _exists(process.pid))
        finally:
            if _exists(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
