"""The processes that run now, and those of a test."""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from joblib.externals.loky import get_reusable_executor


def processes() -> dict[int, tuple[int, int]]:
    """Returns process id -> (parent, session) of all running processes."""
    running = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if state != "Z":
            running[int(stat.parent.name)] = int(parent), int(session)
    return running


def child_processes() -> list[int]:
    return [pid for pid, (parent, _) in processes().items() if parent == os.getpid()]


def in_session(number: int) -> list[int]:
    return [pid for pid, (_, session) in processes().items() if session == number]


def _is_worker(pid: int) -> bool:
    """Returns whether a process is a worker, and not joblib's resource tracker, which ends with this process."""
    try:
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def workers(before: Collection[int]) -> list[int]:
    """Returns the workers of this process that are not in `before`."""
    return [pid for pid in child_processes() if pid not in before and _is_worker(pid)]


def without_workers() -> list[int]:
    """Ends the workers that an earlier test left for others, and returns the child processes that stay."""
    get_reusable_executor().shutdown(wait=True)
    return child_processes()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
