"""Files that are never half-written, and messages for files that cannot be written."""

import errno
import hashlib
import os
import re
import shutil
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
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder to write to, and renames it to `path` if no error occurs.

    Each process has a temporary path of its own: if two write at once, the last one wins. An OSError names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary), temporary):  # None: the disk is full
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)


def caches_folder() -> Path:
    """Returns the folder of `ohem` in the cache of the user, which may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ohem"


def cache_folder(folder: Path) -> Path:
    """Returns the folder in the cache of the user for what belongs to `folder`, which may be read-only."""
    where = folder.resolve()
    return caches_folder() / f"{where.name}-{hashlib.sha256(str(where).encode()).hexdigest()[:8]}"


def is_leftover(path: Path) -> bool:
    """Returns whether `path` is a temporary file of `atomic_write` in a process that was killed."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and not _is_alive(int(match["pid"]))


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Removes temporary files and folders of killed processes from `folder`; those of living processes stay.

    Args:
        folder: may be missing.
        name: pattern of the files that the processes were writing.
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


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Checks that writing `path` would overwrite none of `inputs`, which are compared by file, not by name.

    Raises:
        InputError: `path` is one of `inputs`, or a link to it.
    """
    if not path.exists():
        return
    for other in inputs:
        if other.exists() and path.samefile(other):
            raise InputError(
                f"{path} is read by this command, and would be overwritten: choose another place for the output"
            )


def describe_os_error(error: OSError) -> str:
    """Returns what failed, why and what to do, `FILE: REASON: ADVICE`, without the name of a temporary file."""
    reason = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    place = None if error.filename is None else _final_name(error.filename)
    return ": ".join(str(part) for part in (place, reason, advice) if part is not None)


def _final_name(filename: object) -> str:
    """Returns the file that the temporary file `filename` was to become."""
    name = os.fsdecode(filename) if isinstance(filename, str | bytes | os.PathLike) else str(filename)
    head, tail = os.path.split(name)
    match = TEMPORARY.fullmatch(tail)
    return os.path.join(head, match["name"]) if match else name  # noqa: PTH118  as it was given
