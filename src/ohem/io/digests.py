"""Digests and CRCs of files: they reveal changed data and damage."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_END = 4096
_PART = 1 << 18  # bytes, which the cache of a core holds
_HASHING_THREADS = min(8, os.cpu_count() or 1)
_digests: dict[tuple[str, int, int, int, int], str] = {}


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


def digests_of_files(paths: Iterable[Path], digest: Callable[[Path], str] = digest_of_file) -> list[str]:
    """Returns the `digest` of each path, in order, computed by several threads. Raises OSError as it does."""
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return list(pool.map(digest, paths))


def _identity(path: Path, stat: os.stat_result) -> tuple[str, int, int, int, int]:
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def check_crcs(path: Path) -> None:
    """Checks the zip file `path`, as torch.save writes it, by its CRCs, which torch.load does not compare.

    Raises:
        zipfile.BadZipFile: a part of it is damaged. Other errors of `zipfile` mean the same.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the CRC of {damaged} differs")
