"""Images as tensors: reading, resizing by the authors' rule, and horizontal flips, with their boxes.

Boxes are `[N, 4]` as `[x1, y1, x2, y2]` in pixels, end exclusive; they are resized by multiplying with the scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ohem.images.read import read_header, read_rgb


def read_image(path: str | Path) -> Tensor:
    """Reads an image file as `uint8 [3, H, W]`, RGB, turned upright by its EXIF orientation.

    Grey, palette and CMYK images are converted, alpha is dropped, 16 bits are scaled to 8, and the first frame of an
    animation is read. Raises `InputError` where the file is missing, cut short, not an image or too large.
    """
    return torch.from_numpy(np.array(read_rgb(Path(path)).transpose(2, 0, 1), order="C"))


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns `(height, width)` in pixels, upright, from the header alone; raises `InputError` as `read_image`."""
    return read_header(Path(path)).upright


def scale_factor(height: int, width: int, short: int, long: int) -> float:
    """Returns the factor that makes the short side `short` pixels, or the long side `long` if it would be longer.

    As in the release, the long side may exceed `long` by half a pixel, which rounding removes.
    """
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    return scale


def resize(image: Tensor, scale: float) -> Tensor:
    """Resizes `[3, H, W]` to `[3, round(H * scale), round(W * scale)]`, bilinear and antialiased, same dtype."""
    height, width = image.shape[-2:]
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    # For a width of 1, torch's uint8 kernel fails or returns wrong values.
    pixels = image.float() if size[1] == 1 else image
    resized: Tensor = F.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized if resized.dtype == image.dtype else resized.round().to(image.dtype)


def flip(image: Tensor) -> Tensor:
    """Mirrors `[..., H, W]` left to right."""
    return image.flip(-1)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirrors boxes `[N, 4]` left to right in an image of `width` pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)
