"""The EXIF orientation of an image file that Pillow has opened, without decoding its pixels."""

from __future__ import annotations

import io
import struct
import warnings
from typing import BinaryIO

from PIL import Image

from ohem.images.orientation import ORIENTATIONS, UPRIGHT

_TAG = 0x0112
_ELSEWHERE = {"xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"}


def read_orientation(image: Image.Image, file: BinaryIO) -> int:
    """Reads the orientation 1 to 8 of `image`, opened from `file`; 1, upright, where it is missing or damaged."""
    if image.format == "TIFF":
        orientation = image.tag_v2.get(_TAG)  # type: ignore[attr-defined]
    else:
        orientation = _parse(image.info.get("exif") or (_late_chunk(file) if image.format == "PNG" else b""))
        if orientation is None and _ELSEWHERE & image.info.keys():
            orientation = _search(image)
    return orientation if orientation in ORIENTATIONS else UPRIGHT


def _parse(exif: bytes) -> int | None:
    """Returns the value of the tag in the first directory of `exif`.

    The parser of Pillow reads all tags, and its warnings about damaged ones do not name the file.
    """
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, entry)
            if tag == _TAG:
                return int(value) if kind == 3 else None  # a short number
    except struct.error:  # there is no EXIF, or it is damaged
        pass
    return None


def _late_chunk(file: BinaryIO) -> bytes:
    """Reads the chunk eXIf of a PNG file, which may follow the pixels; b"" where there is none."""
    place = file.seek(0, io.SEEK_CUR)
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, io.SEEK_CUR)
        return b""
    finally:
        file.seek(place)


def _search(image: Image.Image) -> object:
    """Returns the orientation in other places where programs write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The method of PngImageFile would decode all pixels.
        return Image.Image.getexif(image).get(_TAG)
