"""Files at addresses (https://, s3://, gs:// and others, by fsspec), as copies in the cache folder of the user.

The copy of `https://HOST/data/a.jpg` is `remote/https/HOST/data/a.jpg` there. The time of a copy is a digest of the
ETag that the server gives, or else of its time of the last change. So a copy needs no other record: it is current if it
has this time, and the size that the server gives, and a copy that was edited or cut short is fetched again.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from inspect import CORO_CREATED, getcoroutinestate
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from ohem.errors import InputError
from ohem.extras import describe_missing, import_extra
from ohem.io.files import atomic_write, caches_folder, remove_leftovers
from ohem.io.locks import locked
from ohem.io.progress import Counter

OFFLINE = "OHEM_OFFLINE"
"""Environment variable: if it is set, copies are used as they are, and nothing is fetched."""
TIMEOUT = 30.0
"""Seconds without a byte after which an attempt over HTTP is given up."""
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the attempts."""
_THREADS = 16
_AGAIN_SECONDS = 0.05
_MANY = 1000  # files to be compared, which takes some seconds
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # C:// is a drive
# What identifies the content of a file, as servers, object stores and fsspec call it; the first one counts.
_IDENTITIES = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
# Errors of the disk of the copies; the others are those of the network.
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_LATER = (408, 425, 429)  # answers of HTTP below 500 that may be others later

T = TypeVar("T")
S = TypeVar("S")


def is_remote(place: str) -> bool:
    """Returns whether `place` is an address such as `https://HOST/data`."""
    return _ADDRESS.match(place) is not None


def divide(address: str) -> tuple[RemoteFolder, str]:
    """Divides the address of a file into its folder and its name there."""
    folder, _, name = address.rpartition("/")
    remote = RemoteFolder(folder)
    return remote, unquote(name) if remote.is_http else name


class RemoteFolder:
    """A folder at an address, and the copies of its files.

    Args:
        address: as in `https://HOST/data`; the folder need not be there.

    Attributes:
        scheme: `https` and so on.
        is_http: whether it is one of HTTP, whose addresses are quoted.
        address: without `..` and without a slash at the end.
        copy: the folder of the copies, which may be missing.

    Raises:
        InputError: the kind of address is unknown, a package for it is not installed, or `..` leads above the host.
    """

    def __init__(self, address: str) -> None:
        self.scheme = address.partition("://")[0].lower()
        self.is_http = self.scheme in ("http", "https")
        self.address = _resolved(address)
        self.copy = self._copy_of(self.address)
        self.fs = _file_system(self.scheme, self.address, self.is_http)
        self._stopped = threading.Event()

    def path(self, name: str) -> Path:
        """Returns the copy of the file `name`, a path relative to the folder, whether it is there or not."""
        return self._copy_of(self._address_of(name))

    def names(self, folder: str, wanted: Callable[[Path], bool], *, below: bool = False) -> list[str]:
        """Lists the files in `folder`, a path relative to this one, and removes the copies of others.

        Args:
            folder: "" for this one.
            wanted: which files are meant, by name; hidden ones are never.
            below: whether to list the folders below it too.

        Returns:
            names relative to this folder, sorted.

        Raises:
            FileNotFoundError: there is no such folder.
            InputError: the server lists no folders, or does not answer.
        """
        place = self.path(folder)
        copies = [path for path in (place.rglob("*") if below else place.glob("*")) if _is_meant(path, wanted)]
        if _is_offline():
            return sorted((PurePosixPath(folder) / path.relative_to(place)).as_posix() for path in copies)
        names = self._listed(folder, wanted, below)
        for path in {*copies} - {self.path(name) for name in names}:
            path.unlink(missing_ok=True)
        return sorted(names)

    def _listed(self, folder: str, wanted: Callable[[Path], bool], below: bool) -> list[str]:
        names: list[str] = []
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            address = self._address_of(place)
            for entry in self._attempt(address, lambda address=address: self.fs.ls(address, detail=True)):  # type: ignore[misc]
                name = self._name(entry["name"])
                if not name or name.startswith("."):
                    continue
                inside = (PurePosixPath(place) / name).as_posix()
                if entry["type"] == "directory":
                    waiting += [inside] * below
                elif wanted(Path(name)):
                    names.append(inside)
        return names

    def fetch(self, names: Iterable[str], *, required: bool = True) -> set[str]:
        """Makes the copies of the files `names` current, by several threads; prints the progress on standard error.

        Args:
            names: paths relative to the folder.
            required: whether all files must exist.

        Returns:
            the names of files that do not exist. They have no copy.

        Raises:
            InputError: a required file does not exist, or the server has no whole answer after several attempts. The
                copies that are complete stay.
            OSError: a copy cannot be written.
        """
        names = list(dict.fromkeys(names))
        if _is_offline():
            missing = [name for name in names if not self.path(name).is_file()]
        else:
            with self._one_writer():
                missing = self._update(names)
        if missing and required:
            others = f", nor {len(missing) - 1} other files" if len(missing) > 1 else ""
            where = f" in {self.copy}, and {OFFLINE} is set" if _is_offline() else ""
            raise InputError(
                f"{self._address_of(missing[0])} does not exist{others}{where}: put it there, or correct the source or "
                "the annotations"
            )
        return set(missing)

    def _update(self, names: Sequence[str]) -> list[str]:
        """Fetches the files whose copies are not current; returns those that do not exist."""
        states = self._in_threads(self._state, names, f"Comparing {self.address}", len(names) >= _MANY)
        missing = [name for name, state in zip(names, states, strict=True) if state is None]
        for name in missing:
            self.path(name).unlink(missing_ok=True)
        present = [(name, state) for name, state in zip(names, states, strict=True) if state is not None]
        todo = [(name, state) for name, state in present if not self._is_current(name, state)]
        for folder in {self.path(name).parent for name, _ in todo}:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        self._in_threads(self._download, todo, f"Downloading {self.address}", bool(todo))
        return missing

    def _address_of(self, name: str) -> str:
        return _resolved(f"{self.address}/{quote(name) if self.is_http else name}")

    def _name(self, entry: str) -> str:
        """Returns the last part of the address of an entry; "" for links of a page that are no files."""
        if self.is_http and ("?" in entry or "#" in entry):
            return ""
        name = PurePosixPath(entry).name
        return unquote(name) if self.is_http else name

    def _copy_of(self, address: str) -> Path:
        parts = address.partition("://")[2].split("/")
        if self.is_http:
            parts = list(map(unquote, parts))
        wrong = next((part for part in parts if part == ".." or set(part) & set("/\\\0")), None)
        if wrong is not None:
            raise InputError(f"{address} has the part {wrong!r}, which is no name of a file: rename it")
        return Path(caches_folder(), "remote", self.scheme, parts[0].replace(":", "_"), *parts[1:])

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """Waits until no other process fetches into the folder."""
        self.copy.mkdir(parents=True, exist_ok=True)
        with locked(self.copy / ".lock", str(self.copy), wait=-1):
            yield

    def _state(self, name: str) -> Mapping[str, Any] | None:
        """Returns what the server states about a file; None where it does not exist."""
        address = self._address_of(name)
        try:
            state: Mapping[str, Any] = self._attempt(address, lambda: self.fs.info(address))
        except FileNotFoundError:
            return None
        return state if state["type"] == "file" else None

    def _is_current(self, name: str, state: Mapping[str, Any]) -> bool:
        try:
            copy = self.path(name).stat()
        except OSError:
            return False
        size, stamp = state.get("size"), _stamp(state)
        return (size, stamp) != (None, None) and size in (None, copy.st_size) and stamp in (None, int(copy.st_mtime))

    def _download(self, todo: tuple[str, Mapping[str, Any]]) -> None:
        name, state = todo
        address, path = self._address_of(name), self.path(name)
        size, stamp = state.get("size"), _stamp(state)

        def once() -> None:
            with atomic_write(path) as temporary:
                self.fs.get_file(address, str(temporary))
                if self._stopped.is_set():
                    raise ConnectionAbortedError
                received = temporary.stat().st_size
                if size not in (None, received):
                    raise ConnectionError(f"{received} of {size} bytes came")
                if stamp is not None:
                    os.utime(temporary, (stamp, stamp))

        try:
            self._attempt(address, once)
        except FileNotFoundError as error:
            raise InputError(f"{address} was removed meanwhile: repeat the command") from error

    def _in_threads(self, function: Callable[[S], T], items: Sequence[S], description: str, progress: bool) -> list[T]:
        """Calls the function for each item, in threads; an error ends those that have not begun, a signal all."""
        pool = ThreadPoolExecutor(_THREADS)
        futures = [pool.submit(function, item) for item in items]
        results: list[T] = []
        try:
            with Counter(description, len(items), unit="files", enabled=progress) as counter:
                for future in futures:
                    results.append(future.result())
                    counter.advance()
        except (KeyboardInterrupt, SystemExit):
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while wait(futures, timeout=_AGAIN_SECONDS).not_done:  # a thread may begin a transfer meanwhile
                _cancel_transfers(self.fs)
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    def _attempt(self, address: str, action: Callable[[], T]) -> T:
        """Does `action`, again after a while where it fails.

        Raises:
            FileNotFoundError: the server answers that there is no such file.
            InputError: it has no other answer after the last attempt.
            OSError: an error of the disk.
        """
        for number, pause in enumerate((*WAITS, None), start=1):
            try:
                result = action()
                if self._stopped.is_set():  # a transfer that is cancelled may end without an error
                    raise ConnectionAbortedError
                return result
            except Exception as error:
                if self._stopped.is_set():
                    raise
                final = _final(error, address)
                if final is None and pause is None:
                    final = _unreadable(address, f"{_reason(error)}, after {number} attempts")
                if final is not None:
                    raise final from error
                self._stopped.wait(pause)
        raise AssertionError


def _is_offline() -> bool:
    return bool(os.environ.get(OFFLINE))


def _is_meant(path: Path, wanted: Callable[[Path], bool]) -> bool:
    return not path.name.startswith(".") and wanted(path) and path.is_file()


def _resolved(address: str) -> str:
    """Returns `address` without empty parts, `.` and `..`."""
    scheme, _, rest = address.partition("://")
    parts: list[str] = []
    for part in rest.split("/"):
        if part == ".." and len(parts) < 2:
            raise InputError(f"{address} leads out of its host or bucket by '..': correct it")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return f"{scheme}://{'/'.join(parts)}"


def _file_system(scheme: str, address: str, is_http: bool) -> Any:
    fsspec = import_extra("fsspec", address)
    options: dict[str, Any] = {}
    try:
        if is_http:
            aiohttp = import_extra("aiohttp", address)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # proxies and ~/.netrc
        system, _ = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        needed = describe_missing(_PACKAGES.get(scheme), address) or f"{address} needs another package: {error}"
        raise InputError(needed) from error
    except ValueError as error:
        raise InputError(
            f"{address} begins with {scheme}://, which is unknown: give https://, s3:// or gs://"
        ) from error
    system.invalidate_cache()
    return system


def _cancel_transfers(fs: Any) -> None:
    """Ends what `fs` reads now. fsspec reads HTTP and object stores in an event loop of its own thread."""
    loop = getattr(fs, "loop", None)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            coroutine: Any = task.get_coro()
            if getcoroutinestate(coroutine) != CORO_CREATED:  # the waiting thread would never be notified
                task.cancel()

    if loop is not None:
        loop.call_soon_threadsafe(cancel)


def _stamp(state: Mapping[str, Any]) -> int | None:
    """Returns the time of the copy of a file, in whole seconds, which all disks keep; None where nothing is known."""
    identity = next((str(state[key]) for key in _IDENTITIES if state.get(key)), None)
    return None if identity is None else int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) % 2**31


def _final(error: Exception, address: str) -> Exception | None:
    """Returns what to raise where another attempt would be the same."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(cause, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address)
    if isinstance(cause, OSError) and cause.errno in _LOCAL:
        return cause
    if isinstance(cause, PermissionError) or (status is not None and status < 500 and status not in _LATER):
        return _unreadable(address, _reason(error))
    return None


def _cause(error: BaseException) -> BaseException:
    """Returns the error behind `error`: fsspec says that a file is missing where it has no answer about it."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _unreadable(address: str, reason: str) -> InputError:
    return InputError(
        f"{address} cannot be read ({reason}): check the address, the network and your rights, and repeat the command"
    )


def _reason(error: BaseException) -> str:
    error = _cause(error)
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"no answer within {TIMEOUT:g} seconds"
    status = getattr(error, "status", None)
    text = str(error) if status is None else f"{status} {getattr(error, 'message', '')}"
    return " ".join(text.split()) or type(error).__name__
