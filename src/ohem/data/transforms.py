"""What is done to a picture and its boxes before the network: resizing by the authors' rule, and horizontal flips.

Boxes are `[N, 4]` as `[x1, y1, x2, y2]` in pixels, end exclusive; they are resized by multiplying with the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


def scale_factor(height: int, width: int, short: int, long: int) -> float:
    """The factor that makes the short side `short` pixels, or the long side `long` where it would exceed that.

    As in the release, the long side may exceed `long` by the half pixel that rounding takes off.
    """
    scale = short / min(height, width)
    if round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    return scale


def resize(image: Tensor, scale: float) -> Tensor:
    """`[3, H, W]` -> `[3, round(H * scale), round(W * scale)]` of the same dtype, bilinear and antialiased."""
    height, width = image.shape[-2:]
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    # To a width of 1, torch's uint8 kernel fails or gives wrong values.
    pixels = image.float() if size[1] == 1 else image
    resized: Tensor = F.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized if resized.dtype == image.dtype else resized.round().to(image.dtype)


def flip(image: Tensor) -> Tensor:
    """Mirror `[..., H, W]` left to right."""
    return image.flip(-1)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirror boxes `[N, 4]` left to right in a picture `width` pixels wide."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)
