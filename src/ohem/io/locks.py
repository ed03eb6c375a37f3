"""Locks: a run folder, a comparison and a proposal file have one writer at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ohem.errors import InputError

NAME = ".lock"
"""Name of the lock file in a folder that has one writer."""
WAIT = "OHEM_WAIT_LOCKS"
"""Environment variable: seconds to wait for a lock, 0 by default. A comparison sets it for its commands, since those of
an earlier comparison that was killed may need some seconds to end."""


@contextmanager
def locked(path: Path, what: str, wait: float | None = None) -> Iterator[None]:
    """Holds the lock file `path`, in an existing folder, and removes it at the end.

    The system frees the lock of a process that ends, so that an old lock file does no harm.

    Args:
        path: the lock file.
        what: what the lock protects, for the message.
        wait: seconds to wait for another process; by default those of `OHEM_WAIT_LOCKS`, or 0.

    Raises:
        InputError: another process holds the lock.
    """
    lock = FileLock(path, timeout=_seconds_to_wait() if wait is None else wait)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{what} is in use by another process that writes it: wait until that ends, or name another"
        ) from None
    try:
        yield
    finally:
        # Removed before the release: a process that has opened the file meanwhile notices that, and tries again.
        with suppress(OSError):  # Windows removes it on release
            path.unlink()
        lock.release()


def _seconds_to_wait() -> float:
    text = os.environ.get(WAIT, "0")
    try:
        return max(0.0, float(text))
    except ValueError:
        raise InputError(f"the environment variable {WAIT} is {text!r}: give seconds, or remove it") from None
