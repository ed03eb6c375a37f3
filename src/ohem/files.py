"""Files that are never half-written: written beside and renamed."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path


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


def is_leftover(path: Path) -> bool:
    """Whether `path` is what `replacing` wrote to in a process that was killed."""
    name = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
    if name is None or int(name[1]) == os.getpid():
        return False
    try:
        os.kill(int(name[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Removes from `folder` what killed processes left of files, or folders, of that name that they were writing."""
    for path in filter(is_leftover, folder.glob(f".{name}.*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def digests_of_files(paths: Sequence[Path]) -> list[str]:
    """`digest_of_file` of many files, read at the same time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest_of_file, paths))


def digest_of_file(path: Path) -> str:
    """Returns 16 hexadecimal digits of the bytes of a file, which is read once in a process while it stays as it is."""
    stat = path.stat()
    return _digest(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
