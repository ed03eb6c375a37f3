"""Image files of any kind as uint8 RGB, upright; a file that cannot be read ends in one sentence that says why.

The EXIF orientation is applied to pixels and size, as viewers and annotation tools do. Pillow decodes the files:
torchvision.io gives the same pixels, but is deprecated since 0.29 and reads no TIFF or BMP.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ohem.errors import InputError
from ohem.images.exif import read_orientation
from ohem.images.orientation import Size, turn_pixels, turn_size

MAX_PIXELS = 100_000_000
"""Largest height times width: such an image needs some gigabytes when it is decoded and resized."""

_PILLOW_LIMIT = threading.Lock()
# Errors of Pillow for a file that is no image, or is cut short.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, KeyError, IndexError, OverflowError)


class Header(NamedTuple):
    """Size and orientation of an image file."""

    stored: Size
    """`(height, width)` in pixels, as stored."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""

    @property
    def upright(self) -> Size:
        """`(height, width)` in pixels, as viewers show it."""
        return turn_size(self.stored, self.orientation)


def read_header(path: Path) -> Header:
    """Reads size and orientation without decoding the pixels; raises `InputError` as `read_rgb` does."""
    try:
        with path.open("rb") as file, _opened(path, file) as image:
            return _header(image, file)
    except OSError as error:
        raise _missing(path, error) from error


def read_comment(path: Path) -> object:
    """Reads the comment of an image file, None if it has none; raises `InputError` as `read_rgb` does."""
    try:
        with path.open("rb") as file, _opened(path, file) as image:
            return image.info.get("comment")
    except OSError as error:
        raise _missing(path, error) from error


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Reads an image file as uint8 `[H, W, 3]`, RGB, upright.

    Grey, palette and CMYK images are converted, alpha is dropped, 16 bits are scaled to 8, and the first frame of an
    animation is read.

    Raises:
        InputError: the file is missing, cut short, not an image, or has more than `MAX_PIXELS` pixels.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _missing(path, error) from error
    with _opened(path, io.BytesIO(data)) as image:
        orientation = _header(image, io.BytesIO(data)).orientation
        # A broken download may be padded with zeros, which decode to grey: the end must follow the last scan.
        if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise EOFError("its end is missing")
        image.load()
        pixels = _as_rgb(image, path)
        if image.format != "TIFF":  # Pillow itself turns TIFF as it loads
            pixels = turn_pixels(pixels, orientation)
    return np.ascontiguousarray(pixels)


@contextmanager
def _opened(path: Path, file: BinaryIO) -> Iterator[Image.Image]:
    """Opens an image; errors until it is closed become one sentence."""
    try:
        with _open_of_any_size(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, image)
            yield image
    except InputError:
        raise
    except ModuleNotFoundError as error:
        # ultralytics replaces Image.open by a function that needs another package for what Pillow cannot identify.
        if not isinstance(error.__context__, UnidentifiedImageError):
            raise
        raise _damaged(path, error.__context__) from error
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _open_of_any_size(file: BinaryIO) -> Image.Image:
    """Opens an image without the limit of Pillow, whose warning and error name neither the file nor a remedy."""
    with _PILLOW_LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, which does not concern the pixels
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _header(image: Image.Image, file: BinaryIO) -> Header:
    size, orientation = (image.height, image.width), read_orientation(image, file)
    return Header(turn_size(size, orientation) if image.format == "TIFF" else size, orientation)


def _as_rgb(image: Image.Image, path: Path) -> npt.NDArray[np.uint8]:
    if image.mode == "F" or image.mode.startswith("I"):
        return np.stack([_to_8_bits(np.asarray(image), path)] * 3, axis=-1)
    image.info.pop("transparency", None)  # dropped in any case; Pillow would warn
    return np.asarray(image.convert("RGB"))


def _to_8_bits(grey: npt.NDArray[np.generic], path: Path) -> npt.NDArray[np.uint8]:
    """Scales 0..65535 to 0..255, rounded (65535 = 255 * 257). Pillow would clip grey, and scales only 16-bit colour."""
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise InputError(f"{path} holds pixels that are not whole numbers in 0..65535: save it with 8 or 16 bits")
    return ((grey.astype(np.int64) + 128) // 257).astype(np.uint8)


def _missing(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be opened ({error.strerror or error}): put the image there, or correct its name")


def _damaged(path: Path, error: Exception) -> InputError:
    reason = "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return InputError(f"{path} is cut short or not an image ({reason}): copy or download it again, or leave it out")


def _too_large(path: Path, image: Image.Image) -> InputError:
    return InputError(
        f"{path} is too large: it has {image.width} x {image.height} pixels, and at most {MAX_PIXELS // 10**6} million "
        "are read: reduce it together with its boxes, or cut it into tiles"
    )
