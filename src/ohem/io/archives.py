"""Files in zip and tar archives, which are unpacked once into the cache folder of the user.

An archive is written as if it were a folder, `data.zip/VOC2007`, or as fsspec chains addresses,
`zip://VOC2007::https://HOST/data.zip`.
"""

from __future__ import annotations

import errno
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from glob import escape
from pathlib import Path, PurePosixPath
from shutil import rmtree

from ohem.errors import InputError
from ohem.io.files import atomic_write, cache_folder, remove_leftovers
from ohem.io.locks import locked
from ohem.io.remote import divide, is_remote

_SUFFIX = r"\.(?:zip|tar(?:\.(?:gz|bz2|xz))?|tgz|tbz2?|txz)"
_CHAIN = re.compile(rf"(?:zip|tar)://(?P<inside>[^:]*)::(?P<archive>.+?{_SUFFIX})(?=:|$)", re.IGNORECASE)
_PLACE = re.compile(rf"(?P<archive>.+?{_SUFFIX})(?P<inside>/.*)?", re.IGNORECASE | re.DOTALL)
_STAMP = ".unpacked"
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error)
_OTHERS = (EOFError, ValueError, IndexError, RuntimeError, OverflowError)  # of damaged and encrypted archives


def without_chains(source: str) -> str:
    """Returns `source` with each `zip://INSIDE::ARCHIVE` as `ARCHIVE/INSIDE`."""
    return _CHAIN.sub(lambda match: f"{match['archive']}/{match['inside'].strip('/')}".rstrip("/"), source)


def local_file(place: str) -> Path:
    """Returns the file `place` on this machine: itself, its copy, or where it is unpacked. It may be missing there.

    Raises:
        InputError: it is remote and cannot be fetched, or as `unpacked` does.
    """
    return _copy(unpacked(place))


def exists(place: str) -> bool:
    """Returns whether `place` is a file or folder, perhaps in an archive. What is remote is taken to be there."""
    match = _PLACE.fullmatch(without_chains(place))
    return is_remote(place) or Path(place).exists() or (match is not None and Path(match["archive"]).is_file())


def unpacked(place: str) -> str:
    """Returns where `place` is if it is in an archive, which is fetched and unpacked; otherwise `place`.

    Raises:
        InputError: the archive cannot be fetched, is damaged, or has an entry that leads out of it.
    """
    place = without_chains(place)
    match = _PLACE.fullmatch(place)
    if match is None or not (is_remote(match["archive"]) or Path(match["archive"]).is_file()):
        return place
    return f"{_unpack(_copy(match['archive']), match['archive'])}{match['inside'] or ''}"


def _copy(place: str) -> Path:
    if not is_remote(place):
        return Path(place)
    folder, name = divide(place)
    folder.fetch([name])
    return folder.path(name)


def _unpack(archive: Path, title: str) -> Path:
    """Returns the folder of what is in `archive`."""
    stat, folder = archive.stat(), cache_folder(archive)
    state = f"{stat.st_size} {stat.st_mtime_ns}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), str(folder), wait=-1):
        stamp = folder / _STAMP
        if not stamp.is_file() or stamp.read_text() != state:
            rmtree(folder, ignore_errors=True)
            remove_leftovers(folder.parent, escape(folder.name))
            with atomic_write(folder) as temporary:
                try:
                    _extract(archive, temporary, title)
                    (temporary / _STAMP).write_text(state)
                except BaseException:
                    rmtree(temporary, ignore_errors=True)
                    raise
    return folder


def _extract(archive: Path, folder: Path, title: str) -> None:
    is_zip = archive.suffix.lower() == ".zip"
    if not is_zip and not hasattr(tarfile, "data_filter"):
        raise InputError(
            f"{title} cannot be unpacked safely by this Python: take 3.10.12, 3.11.4 or newer, or a .zip file"
        )
    folder.mkdir()
    outside = None
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as content:
                outside = next(filter(_is_outside, content.namelist()), None)
                if outside is None:
                    content.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        outside = error.tarinfo.name
    except (*_DAMAGED, *_OTHERS, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
        raise InputError(f"{title} is damaged or no archive ({reason}): copy it again, or pack it anew") from error
    if outside is not None:
        raise InputError(f"{title} has the entry {outside!r}, which leads out of the archive: pack it anew without it")


def _is_outside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or re.match(r"[a-zA-Z]:", name) is not None
