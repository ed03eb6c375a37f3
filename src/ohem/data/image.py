"""Pictures from disk: every kind a data set holds becomes one uint8 RGB tensor, or one sentence that says why not.

Boxes are annotated on the pixels as stored, so an EXIF orientation is not applied, neither here nor to the size.
Pillow decodes: torchvision.io gives the same pixels, but is deprecated since 0.29 and reads no TIFF or BMP.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ohem.errors import InputError

# What Pillow raises for a file that is no picture, is cut short, or is absurdly large.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path) -> Tensor:
    """Read a picture as `uint8 [3, H, W]`, RGB.

    Grey, palette and CMYK are converted, alpha is dropped, 16 bits are scaled to 8, of an animation the first frame
    is taken. Raises `InputError` where the file is missing, cut short or not a picture.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _missing(path, error) from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            # A broken download may be padded with zeros, which decode to grey: the end must follow the last scan.
            if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                raise EOFError("its end is missing")
            image.load()
            deep = image.mode == "F" or image.mode.startswith("I")
            image.info.pop("transparency", None)  # dropped in any case; Pillow would warn
            pixels = np.asarray(image if deep else image.convert("RGB"))
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    if deep:
        pixels = np.stack([_to_8_bits(pixels, path)] * 3, axis=-1)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def image_size(path: str | Path) -> tuple[int, int]:
    """`(height, width)` in pixels as stored, from the header alone; raises `InputError` as `read_image` does."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise _missing(path, error) from error
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _to_8_bits(grey: np.ndarray, path: Path) -> np.ndarray:
    """0..65535 -> 0..255, rounded: 65535 = 255 * 257. Pillow itself would clip. (16-bit colour it scales.)"""
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise InputError(f"{path} holds pixels that are not whole numbers in 0..65535: save it with 8 or 16 bits")
    return ((grey.astype(np.int64) + 128) // 257).astype(np.uint8)


def _missing(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be opened ({error.strerror or error}): put the image there or correct its name")


def _damaged(path: Path, error: Exception) -> InputError:
    reason = "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error)
    return InputError(f"{path} is cut short or not an image ({reason}): copy or download it again, or remove its id")
