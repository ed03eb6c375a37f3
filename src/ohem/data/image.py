"""Images as tensors: those that `ohem.images` reads, upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ohem.images.read import read_header, read_rgb


def read_image(path: str | Path) -> Tensor:
    """Reads an image file as `uint8 [3, H, W]`, RGB, turned upright by its EXIF orientation.

    Grey, palette and CMYK are converted, alpha is dropped, 16 bits are scaled to 8, of an animation the first frame
    is taken. Raises `InputError` where the file is missing, cut short, not an image or too large.
    """
    return torch.from_numpy(np.array(read_rgb(Path(path)).transpose(2, 0, 1), order="C"))


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns `(height, width)` in pixels, upright, from the header alone; raises `InputError` as `read_image`."""
    return read_header(Path(path)).upright
