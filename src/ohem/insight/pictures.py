"""Small pictures of boxes inside a page."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import draw_bounding_boxes

from ohem.data.dataset import DetectionSet
from ohem.data.transforms import read_image
from ohem.errors import InputError

SIDE = 150
"""Side of a picture in pixels."""
CONTEXT = 1.8
"""Side of the part of the image that the picture has, in long sides of the box."""
LEAST = 64
"""Smallest side of that part, in pixels of the image."""
QUALITY = 80
COLOUR = (255, 80, 0)
KEPT = 32  # decoded images that are kept, since several boxes may be in one


class Thumbnails:
    """Pictures of boxes in the images of a data set, as data URIs.

    Args:
        data: the images; None if there are none: an image whose name is a file still has pictures.
        indices: name of an image -> its index in `data`.
    """

    def __init__(self, data: DetectionSet | None, indices: Mapping[str, int]) -> None:
        self.data, self.indices = data, indices
        self._images: dict[str, Tensor | None] = {}

    def of(self, name: str, box: Sequence[float]) -> str | None:
        """Returns the picture of `box`, `[x1, y1, x2, y2]` in pixels of the image `name`; None without the image."""
        if name not in self._images:
            if len(self._images) >= KEPT:
                self._images.pop(next(iter(self._images)))
            self._images[name] = self._read(name)
        image = self._images[name]
        return None if image is None else data_uri(cut_out(image, box))

    def _read(self, name: str) -> Tensor | None:
        try:
            if self.data is not None and name in self.indices:
                return self.data.image(self.indices[name])
            return read_image(Path(name)) if Path(name).is_file() else None
        except InputError:
            return None


def cut_out(image: Tensor, box: Sequence[float]) -> Tensor:
    """Returns the surroundings of a box, with the box drawn: uint8 (3, SIDE, SIDE).

    Args:
        image: uint8 (3, H, W).
        box: `[x1, y1, x2, y2]` in pixels.
    """
    x1, y1, x2, y2 = box
    side = max(LEAST, round(CONTEXT * max(x2 - x1, y2 - y1)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    square = torch.full((3, side, side), 24, dtype=torch.uint8)
    height, width = image.shape[1:]
    rows, columns = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    part = image[:, rows, columns]
    square[:, rows.start - top : rows.start - top + part.shape[1], columns.start - left :][:, :, : part.shape[2]] = part
    small: Tensor = resize(square, [SIDE, SIDE], antialias=True)
    factor = SIDE / side
    corners = torch.tensor([[(x1 - left), (y1 - top), (x2 - left), (y2 - top)]]) * factor
    corners = corners.round().clamp(0, SIDE - 1)
    corners[:, 2:] = torch.maximum(corners[:, 2:], corners[:, :2] + 1).clamp(max=SIDE - 1)
    corners[:, :2] = torch.minimum(corners[:, :2], corners[:, 2:] - 1)
    drawn: Tensor = draw_bounding_boxes(small, corners, colors=[COLOUR], width=2)
    return drawn


def data_uri(image: Tensor) -> str:
    """Returns an image, uint8 (3, H, W), as the address of a JPEG picture inside a page."""
    stream = BytesIO()
    to_pil_image(image).save(stream, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"
