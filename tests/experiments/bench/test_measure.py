"""Arms in turns, each in a process of its own, and what becomes of them when one fails; all without torch."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ohem.errors import InputError
from ohem.experiments.bench.measure import measure
from tests.experiments.bench.workloads import allocating, doing, noting, unbuilt

MB = 1_000_000
# A shell that runs the tests in the background has them ignore Ctrl-C, and so do their children.
PROGRAM = """
import signal, sys
from functools import partial
from pathlib import Path
from ohem.experiments.bench.measure import measure
from tests.experiments.bench.workloads import doing, noting
log = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
measure({"a": partial(noting, "a", log), "b": partial(doing, "sleep", log)}, steps=2, warmup=0, progress=False)
"""


@pytest.mark.parametrize(
    ("apart", "order"),
    [
        (False, "a:0 b:0 c:0 b:1 c:1 a:1 c:2 a:2 b:2 c:left b:left a:left"),
        (True, "a:0 a:1 a:2 a:left b:0 b:1 b:2 b:left c:0 c:1 c:2 c:left"),
    ],
)
def test_arms_take_turns_unless_apart(tmp_path: Path, apart: bool, order: str) -> None:
    log = tmp_path / "log"
    found = measure({name: partial(noting, name, log) for name in "abc"}, steps=2, warmup=1, apart=apart)
    assert log.read_text().split() == order.split()
    assert list(found) == ["a", "b", "c"]
    pids = set()
    for each in found.values():
        assert (len(each.warmup_seconds), len(each.seconds), len(each.cpu_seconds)) == (1, 2, 2)
        assert min(each.warmup_seconds + each.seconds) > 0
        assert [shown["step"] for shown in each.shown] == [0, 1, 2]
        assert (each.threads, each.device) == (None, "cpu")
        pids |= {shown["pid"] for shown in each.shown}
    assert len(pids | {os.getpid()}) == 4
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere a peak is that of the parent, too")
def test_memory_is_the_worker_s_alone() -> None:
    ours = bytearray(400 * MB)
    found = measure({"arm": partial(allocating, 100 * MB)}, steps=1, warmup=0)["arm"]
    assert len(ours) > found.peak.resident_peak
    assert found.peak.resident_peak - found.built.resident >= 95 * MB  # the kernel counts pages in batches
    assert found.peak.resident < found.peak.resident_peak
    assert found.peak.peak == found.peak.resident_peak
    assert found.built.now == found.built.resident


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("bad input", "one, step 2: x.jpg is damaged: replace it"),
        ("memory", "one, step 2: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes: leave"),
        ("kill", "one: its process was killed, as a system does that runs out of memory: leave this arm out"),
        ("exit", "one: its process ended with exit status 3 "),
        ("bug", "one: its process ended with exit status 1 "),
    ],
)
def test_one_sentence_when_a_worker_fails(
    tmp_path: Path, what: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arms = {"one": partial(doing, what, tmp_path / "log"), "other": partial(doing, "nothing", tmp_path / "log")}
    with pytest.raises(InputError) as error:
        measure(arms, steps=2, warmup=0)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()
    assert ("ZeroDivisionError: of our own" in capfd.readouterr().err) == (what == "bug")


def test_one_sentence_when_a_worker_cannot_be_built() -> None:
    with pytest.raises(InputError, match=r"^one, building: w\.pth does not fit"):
        measure({"one": unbuilt}, steps=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches all processes, the others that measures them alone."""
    log = tmp_path / "log"
    line = [sys.executable, "-c", PROGRAM, str(log)]
    with subprocess.Popen(line, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_until(lambda: process.poll() is not None or (log.exists() and "sleep:" in log.read_text()))
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            _, told = process.communicate(timeout=60)
            assert process.returncode == -number
            assert told.count("Traceback") == (1 if number == signal.SIGINT else 0), told
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
