"""Files that are never half-written: written beside and renamed; and what is said where one cannot be written."""

import errno
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ohem.errors import InputError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp")

_HASHING_THREADS = min(8, os.cpu_count() or 1)
_digests: dict[tuple[str, int, int, int, int], str] = {}
_ROOM = "choose another place, or make room"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: f"{_ROOM} (`ulimit -f` may limit the size of files)",
    errno.ENOENT: "correct the name, or make the folder that it lies in",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENOTDIR: "a part of this path is a file: choose a path of folders",
    errno.EISDIR: "give the name of a file",
    errno.EEXIST: "choose another name, or remove what is there",
    errno.ENOTEMPTY: "choose another name, or remove what is there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the symbolic link that leads back to itself",
    errno.EIO: "check the disk, and choose another place",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "close other programs, or allow more open files",
    errno.EBUSY: "wait until no other program uses it",
}


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
        if error.errno is not None and error.filename in (None, str(beside), beside):  # None: the disk is full
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # the error above is the one to report
            beside.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether `path` is what `replacing` wrote to in a process that was killed."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and not _is_alive(int(match["pid"]))


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Removes from `folder` what killed processes left of files, or folders, of that name that they were writing.

    Those of processes that are alive stay, and so does everything where `folder` does not exist.
    """
    for path in filter(is_leftover, folder.glob(f".{name}.*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill(pid, 0) would end a process there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


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


def check_crcs(path: Path) -> None:
    """Checks the zip file `path`, as torch.save writes it, by its CRCs, which torch.load does not compare.

    Raises:
        zipfile.BadZipFile: a part of it is damaged. Other errors of `zipfile` mean the same.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the CRC of {damaged} differs")


def describe_os_error(error: OSError) -> str:
    """Returns what failed, why and what to do, `FILE: REASON: ADVICE`, without the name of a temporary file."""
    reason = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    place = None if error.filename is None else _final_name(error.filename)
    return ": ".join(str(part) for part in (place, reason, advice) if part is not None)


def _final_name(filename: object) -> str:
    """The file that `filename`, as an OSError holds it, was to become."""
    name = os.fsdecode(filename) if isinstance(filename, str | bytes | os.PathLike) else str(filename)
    head, tail = os.path.split(name)
    match = TEMPORARY.fullmatch(tail)
    return os.path.join(head, match["name"]) if match else name  # noqa: PTH118  as it was given
