"""The ground truth of one image, read from any format and checked against the image.

Boxes are `[x1, y1, x2, y2]` in pixels of the upright image, end exclusive, inside it and with an area.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ohem.data.annotations.findings import Findings, Note
from ohem.errors import InputError
from ohem.images.orientation import UPRIGHT, Size, turn_boxes, turn_boxes_back
from ohem.images.read import Header, read_header

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Frame:
    """The image that an annotation refers to: as it is stored, or upright."""

    size: Size
    """`(height, width)` of the image in which the boxes were annotated."""
    upright: Size
    """`(height, width)` of the upright image."""
    orientation: int = UPRIGHT
    """EXIF orientation that turns annotated boxes into boxes of the upright image."""
    has_exif: bool = False
    """Whether the image has an EXIF orientation, a likely cause of boxes that do not fit."""

    def turned(self, boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns annotated boxes `[N, 4]` into boxes of the upright image."""
        return turn_boxes(boxes, self.orientation, self.upright)

    def turned_back(self, boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns boxes `[N, 4]` of the upright image into boxes as annotated."""
        return turn_boxes_back(boxes, self.orientation, self.upright)


@dataclass(frozen=True)
class Annotation:
    """The ground truth of one image with N objects."""

    file: Path
    """File of the annotation, for messages."""
    image: Path
    frame: Frame
    names: list[str]
    """Classes of the objects."""
    boxes: Floats
    """`[N, 4]`."""
    ignore: list[bool]
    """`difficult` objects of VOC, crowds of COCO."""
    area: Floats | None = None
    """`[N]`, area in square pixels as the format states it; in COCO it is the area of the outline."""


def without_objects(file: Path, image: Path) -> Annotation:
    """Returns the annotation of an image without an object; raises `InputError` where the image cannot be read."""
    size = read_header(image).upright
    return Annotation(file, image, Frame(size, size), [], np.zeros((0, 4), np.float32), [])


def find_frame(stated: Size | None, image: Path, where: str, findings: Findings) -> Frame:
    """Finds the image that an annotation refers to, from the stated size `(height, width)` and the image file.

    Args:
        stated: size in the annotation, or None.
        image: image file, whose header is read.
        where: name of the annotation in messages.
        findings: gets a note about guesses and turned images.

    Raises:
        InputError: the image has another size, or cannot be read.
    """
    header = read_header(image)
    if stated is None:
        findings.note(Note.SIZE_READ, where)
    elif stated not in (header.stored, header.upright):
        raise _wrong_size(stated, header, image, where)
    if header.orientation == UPRIGHT:
        return Frame(header.stored, header.stored)
    if stated is None or header.stored == header.upright:
        findings.note(Note.TURNED_UNKNOWN, where)
    elif stated == header.stored:
        findings.note(Note.TURNED_WITH_BOXES, where)
        return Frame(header.stored, header.upright, header.orientation, has_exif=True)
    else:
        findings.note(Note.TURNED, where)
    return Frame(header.upright, header.upright, has_exif=True)


def _wrong_size(stated: Size, header: Header, image: Path, where: str) -> InputError:
    sizes = f"{header.upright[1]} x {header.upright[0]}"
    if header.upright != header.stored:
        sizes += f" when it is upright, and {header.stored[1]} x {header.stored[0]} as it is stored"
    return InputError(
        f"{where} has a size of {stated[1]:g} x {stated[0]:g} (width x height), {image} has {sizes}: correct the size "
        "together with the boxes, or put the annotated image there"
    )


def clip_box(box: Sequence[float], frame: Frame, where: str, file: str, findings: Findings) -> Floats | None:
    """Clips the box `[4]` to the image of its annotation, with a note where the box was wrong.

    Args:
        box: `[x1, y1, x2, y2]`, end exclusive.
        frame: image that the annotation refers to.
        where: name of the box in messages.
        file: name of the annotation in notes.
        findings: gets the notes.

    Returns:
        float32 `[4]`; None, with a note, for a box without area.

    Raises:
        InputError: more than half of the box lies outside.
    """
    (x1, y1, x2, y2), (height, width) = box, frame.size
    if x2 <= x1 or y2 <= y1:
        findings.note(Note.SKIPPED, file)
        return None
    inside = np.array([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)], np.float32)
    shared = max(0.0, min(x2, width) - max(x1, 0)) * max(0.0, min(y2, height) - max(y1, 0))
    # One pixel beyond the edge is a convention of other tools (0-based, or an exclusive end), not a fault.
    beyond = min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1
    if beyond and shared < 0.5 * (x2 - x1) * (y2 - y1):
        turned = "was it drawn on the image with another orientation (EXIF), " if frame.has_exif else "was it "
        raise InputError(
            f"{where} has a box of which most lies outside its image of {width} x {height} pixels, from "
            f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g}): {turned}drawn on an image of another size, or are its numbers in "
            "another order?"
        )
    if (inside[2:] <= inside[:2]).any():
        findings.note(Note.SKIPPED, file)
        return None
    if beyond:
        findings.note(Note.CLIPPED_TURNED if frame.has_exif else Note.CLIPPED, file)
    return inside


def check_in_pixels(boxes: Sequence[Sequence[float]], where: str) -> None:
    """Checks that the boxes of an image are in pixels, not in fractions of its size.

    Raises:
        InputError: all numbers are within 0 and 1, and some are not whole.
    """
    numbers = [number for box in boxes for number in box]
    if numbers and all(0 <= number <= 1 for number in numbers) and any(number % 1 for number in numbers):
        raise InputError(
            f"{where} has only boxes within 0 and 1, which are fractions of the image and no pixels: multiply them by "
            "its width and height"
        )


def class_name(text: str) -> str:
    """Returns the name of a class without invisible differences: extra blanks, and the composition of letters."""
    return " ".join(unicodedata.normalize("NFC", text).split())
