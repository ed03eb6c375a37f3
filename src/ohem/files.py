"""Files that are never half-written (written beside and renamed), have one writer, and are known by digest."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ohem.errors import InputError

WAIT = "OHEM_WAIT_LOCKS"  # environment variable: seconds to wait for a file that another process writes
_HASHING_THREADS = min(8, os.cpu_count() or 1)
_digests: dict[tuple[str, int, int, int, int], str] = {}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; renames it to `path` if all goes well, removes it if not.

    Each process has its own, so that of two that write at once the last one wins. An OSError names `path`.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(beside)):  # None: the disk is full
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, what: str, wait: float | None = None) -> Iterator[None]:
    """Holds the lock file `path`, in a folder that exists, and removes it at the end.

    The operating system releases the lock of a process that is killed. Its file may stay, and blocks nobody.

    Args:
        path: the lock file.
        what: what it protects, for the message: "the run runs/ohem".
        wait: seconds to wait for another process; by default those of the environment variable OHEM_WAIT_LOCKS, or 0.

    Raises:
        InputError: another process holds the lock.
        OSError: the lock file cannot be made.
    """
    seconds = _seconds_to_wait() if wait is None else wait
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{what} is in use by another process: wait until that has ended, or stop it") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it on release
            path.unlink()  # while it is held: filelock does not accept a lock on a file that was removed
        lock.release()


def _seconds_to_wait() -> float:
    text = os.environ.get(WAIT, "0")
    try:
        return max(0.0, float(text))
    except ValueError as error:
        raise InputError(f"the environment variable {WAIT} is {text!r}: give a number of seconds") from error


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Checks that writing `path` would overwrite none of `inputs`, which are compared by file, not by name.

    Raises:
        InputError: `path` is one of `inputs`, or a link to it.
    """
    if not path.exists():
        return
    for other in inputs:
        if other.exists() and path.samefile(other):
            raise InputError(f"{path} is read by this command, and would be overwritten: choose another place for it")


def digest_of_file(path: Path) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of the content of `path`.

    Within a process a file is read again only if its size, times or inode have changed. Raises OSError where it
    cannot be read.
    """
    known = _digests.get(_identity(path, path.stat()))
    if known is not None:
        return known
    with path.open("rb") as file:
        key = _identity(path, os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    _digests[key] = digest
    return digest


def digests_of_files(paths: Iterable[Path]) -> list[str]:
    """Returns `digest_of_file` of each path, in order, computed by several threads. Raises OSError as it does."""
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return list(pool.map(digest_of_file, paths))


def _identity(path: Path, stat: os.stat_result) -> tuple[str, int, int, int, int]:
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
