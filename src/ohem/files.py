"""Files that are never half-written: written beside and renamed; and what is said where one cannot be written."""

import errno
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ohem.errors import InputError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp")

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


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files in `folder` of processes that were killed while they wrote.

    Files of processes that are alive stay, and so does everything where `folder` does not exist.
    """
    if os.name == "nt" or not folder.is_dir():  # os.kill(pid, 0) would end a process on Windows
        return
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and path.is_file() and not _is_alive(int(match["pid"])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


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
