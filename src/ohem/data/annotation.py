"""One image's ground truth, whatever format it was read from, and what is mended in it on the way.

Boxes are `[x1, y1, x2, y2]` in pixels, end exclusive, inside the image and with an area.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ohem.data.image import image_size
from ohem.errors import InputError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Annotation:
    """What is known of one image before its pixels are read; N objects."""

    file: Path
    """Where the annotation was read, for messages."""
    image: Path
    size: tuple[int, int]
    """`(height, width)` in pixels."""
    names: list[str]
    """The objects' classes."""
    boxes: Floats
    """`[N, 4]`."""
    ignore: list[bool]
    """VOC's `difficult` objects, COCO's crowds."""
    area: Floats | None = None
    """`[N]`, square pixels that the format itself states; COCO means those of the object's outline."""


@dataclass
class Defects:
    """What is mended, counted over the data set so that one warning tells it."""

    clipped: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def warn(self, dataset: str) -> None:
        for counts, what, done in (
            (self.clipped, "reaching outside the image", "clipped"),
            (self.skipped, "inverted or without area", "skipped"),
        ):
            if counts:
                boxes, first = counts.total(), next(iter(counts))
                warnings.warn(
                    f"{dataset}: {done} {boxes} box{'es' * (boxes > 1)} {what}, in {len(counts)} annotation"
                    f"{'s' * (len(counts) > 1)}, the first of them {first}; correct them to be rid of this warning",
                    UserWarning,
                    stacklevel=3,
                )


def mend(box: Sequence[float], size: tuple[int, int], where: str, defects: Defects) -> Floats | None:
    """The box `[4]` cut to the image, counted where that is a defect, or None if nothing with an area is left."""
    (x1, y1, x2, y2), (height, width) = box, size
    inside = np.array([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)], np.float32)
    if (inside[2:] <= inside[:2]).any():
        return None
    # One pixel over the edge is another tool's convention (0-based, or an exclusive end), no defect.
    if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
        defects.clipped[where] += 1
    return inside


def checked_size(height: float, width: float, image: Path, where: str) -> tuple[int, int]:
    """`(height, width)`, which the annotation, told as `where`, and the image's header agree on."""
    stored = image_size(image)
    if [height, width] != list(stored):
        raise InputError(
            f"{where} of {width:g} x {height:g} (width x height), {image} has {stored[1]} x {stored[0]}: "
            "annotate the image as it is stored, or put the annotated one there"
        )
    return stored
