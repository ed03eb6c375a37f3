"""Digests and CRCs of files: they reveal changed data and damage."""

import hashlib
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain, islice
from pathlib import Path
from typing import cast

from ohem.io.files import caches_folder

_END = 4096
_PART = 1 << 18  # bytes, which the cache of a core holds
_HASHING_THREADS = min(8, os.cpu_count() or 1)
MEMORY = "digests.sqlite3"
"""File of remembered digests in the cache of the user."""
MANY = 1000
"""Files whose digests are remembered in the cache of the user: fewer are read at once."""
_UNSETTLED = 2e9  # ns after a change of a file in which another one may leave its times as they are
_Identity = tuple[str, int, int, int, int]
_AT_ONCE = 1 << 14  # files whose digests are computed before the next ones, so that memory does not grow with them
_TASKS = 512  # into which they are divided: one for each file would take longer than what it does
_MOST = 50_000  # digests that a process keeps, in 25 MB
_digests: dict[_Identity, str] = {}


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
        digest = hashlib.sha256()
        while part := file.read(_PART):
            digest.update(part)
    _digests[key] = digest.hexdigest()[:16]
    return _digests[key]


def digest_of_ends(path: Path) -> str:
    """Returns 16 hexadecimal digits for the size of `path` and its first and last 4096 bytes; raises OSError.

    An image that is saved anew differs in them, but for a damaged byte in its middle.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size} ".encode() + file.read(_END))
        file.seek(max(0, size - _END))
        digest.update(file.read(_END))
    return digest.hexdigest()[:16]


def digests_of_files(paths: Iterable[Path], digest: Callable[[Path], str] = digest_of_file) -> Iterator[str]:
    """Yields the `digest` of each path, in order, computed by several threads. Raises OSError as it does.

    Those of many whole files are remembered in the cache of the user: a file is read again only if its size, times or
    inode have changed.
    """
    rest, many = iter(paths), False
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        while files := list(islice(rest, _AT_ONCE)):
            many = many or (digest is digest_of_file and len(files) >= MANY)
            known = _recall(files) if many else set()
            size = -(-len(files) // _TASKS)
            parts = [files[first : first + size] for first in range(0, len(files), size)]
            yield from chain.from_iterable(list(pool.map(lambda part: [digest(file) for file in part], parts)))
            if many:
                _remember(files, known)
            for old in list(islice(_digests, max(0, len(_digests) - _MOST))):
                del _digests[old]


def remembered(key: str, make: Callable[[], str]) -> str:
    """Returns `make()`, which is remembered in the cache of the user for `key`, no path of a file."""
    known: list[str] = []

    def read(table: sqlite3.Connection) -> None:
        known.extend(value for (value,) in table.execute("SELECT digest FROM digests WHERE path = ?", (key,)))

    def write(table: sqlite3.Connection) -> None:
        table.execute("INSERT OR REPLACE INTO digests VALUES (?, 0, 0, 0, 0, ?)", (key, known[0]))
        table.commit()

    _with_memory(read)
    if not known:
        known.append(make())
        _with_memory(write)
    return known[0]


def _identity(path: Path, stat: os.stat_result) -> _Identity:
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _recall(files: Sequence[Path]) -> set[_Identity]:
    """Reads remembered digests of the files; returns the identities of the files then."""
    known: set[_Identity] = set()

    def read(table: sqlite3.Connection) -> None:
        for path in map(str, files):
            for *identity, value in table.execute("SELECT * FROM digests WHERE path = ?", (path,)):
                known.add(key := cast(_Identity, tuple(identity)))
                _digests.setdefault(key, value)

    _with_memory(read)
    return known


def _remember(files: Sequence[Path], known: set[_Identity]) -> None:
    """Writes the digests of files that are not `known`, in place of earlier ones of the same paths."""
    settled = time.time_ns() - _UNSETTLED
    keys = {_identity(path, path.stat()) for path in files} & _digests.keys()
    new = [(*key, _digests[key]) for key in keys - known if max(key[2], key[3]) < settled]

    def write(table: sqlite3.Connection) -> None:
        table.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", new)
        table.commit()

    if new:
        _with_memory(write)


def _with_memory(action: Callable[[sqlite3.Connection], None]) -> None:
    """Calls `action` with the remembered digests. If they cannot be used, it is left out; a damaged file is removed."""
    path = caches_folder() / MEMORY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=10)) as table:
            columns = "path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, inode INT, digest TEXT"
            table.execute(f"CREATE TABLE IF NOT EXISTS digests ({columns}) WITHOUT ROWID")
            action(table)
    except (sqlite3.OperationalError, OSError):  # read-only, or locked for long
        pass
    except sqlite3.DatabaseError:
        with suppress(OSError):
            path.unlink()


def check_crcs(path: Path) -> None:
    """Checks the zip file `path`, as torch.save writes it, by its CRCs, which torch.load does not compare.

    Raises:
        zipfile.BadZipFile: a part of it is damaged. Other errors of `zipfile` mean the same.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the CRC of {damaged} differs")
