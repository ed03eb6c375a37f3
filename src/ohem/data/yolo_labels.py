"""One label file of YOLO layout. Every number is checked; a fault ends in one sentence with the line.

A row is `class cx cy width height`, in fractions of the upright image, or the class and the points of a polygon,
`class x1 y1 x2 y2 x3 y3 ...`, which is read as its bounding box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ohem.data.annotations.annotation import Annotation, Floats, Frame, clip_box
from ohem.data.annotations.findings import Findings, Note
from ohem.errors import InputError
from ohem.images.orientation import UPRIGHT
from ohem.images.read import read_header
from ohem.io.files import describe_os_error

SLACK = 0.01
"""Rounding: fractions that are so much below 0 or above 1 are clipped, as YOLO's programs do."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def read_labels(path: Path, image: Path, names: Sequence[str], keypoints: int, findings: Findings) -> Annotation:
    """Reads the label file `path` of the image file `image`.

    Args:
        path: label file; a missing one has no object.
        image: image file, whose header is read.
        names: class names, in the order of their numbers.
        keypoints: number of values of keypoints that follow a box in a row, and are not read; usually 0.
        findings: gets notes.

    Raises:
        InputError: a row is impossible.
    """
    header = read_header(image)
    frame = Frame(header.upright, header.upright)
    if header.orientation != UPRIGHT:
        findings.note(Note.TURNED, path)
    rows = _read_rows(path)
    if not rows:
        findings.note(Note.UNLABELLED, path)
    labels: list[str] = []
    boxes: list[Floats] = []
    seen: set[tuple[float, ...]] = set()
    for number, row in rows.items():
        where = f"line {number} of {path}"
        values = _read_values(row, where)
        if values in seen:
            findings.note(Note.REPEATED, path)
            continue
        seen.add(values)
        name = _class_of(values[0], names, where)
        box = clip_box(_corners(values[1:], frame, keypoints, where), frame, where, str(path), findings)
        if box is not None:
            labels.append(name)
            boxes.append(box)
    file = path if path.exists() else image  # for messages, and because a missing label file means no object
    return Annotation(file, image, frame, labels, np.array(boxes, np.float32).reshape(-1, 4), [False] * len(labels))


def _read_rows(path: Path) -> dict[int, list[str]]:
    """Reads the rows that are not empty, by line number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"the labels {describe_os_error(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the labels {path} are not UTF-8 text ({error.reason}): save them as that") from error
    rows = ((number, line.split()) for number, line in enumerate(text.split("\n"), start=1))
    return {number: row for number, row in rows if row}


def _read_values(row: Sequence[str], where: str) -> tuple[float, ...]:
    wrong = next((text for text in row if not _NUMBER.fullmatch(text)), None)
    if wrong is not None:
        raise InputError(f"{where} has {wrong[:20]!r}, which is not a number: write class cx cy width height")
    return tuple(map(float, row))


def _class_of(number: float, names: Sequence[str], where: str) -> str:
    if not 0 <= number < len(names) or number % 1:
        raise InputError(
            f"{where} has the class {number:g}, and the names are numbered from 0 to {len(names) - 1}: correct it, or "
            "add the name"
        )
    return names[int(number)]


def _corners(values: Sequence[float], frame: Frame, keypoints: int, where: str) -> list[float]:
    """Converts the numbers of a row after its class to `[x1, y1, x2, y2]` in pixels, not clipped."""
    if keypoints and len(values) == 4 + keypoints:
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise InputError(
            f"{where} has {len(values)} numbers after the class: write cx cy width height, or x and y of three or more "
            "points"
        )
    above = next((value for value in values if value > 1 + SLACK), None)
    if above is not None:
        raise InputError(
            f"{where} has the number {above:g}, and a fraction of the image is at most 1: divide pixels by its width "
            "and height"
        )
    lowest = (-SLACK, -SLACK, 0, 0) if len(values) == 4 else [-SLACK] * len(values)
    if any(value < low for value, low in zip(values, lowest, strict=True)):
        raise InputError(f"{where} has a negative number: write fractions of the image, from 0 to 1")
    height, width = frame.size
    if len(values) > 4:
        x, y = values[0::2], values[1::2]
        return [min(x) * width, min(y) * height, max(x) * width, max(y) * height]
    x_center, y_center, box_width, box_height = values
    return [
        (x_center - box_width / 2) * width,
        (y_center - box_height / 2) * height,
        (x_center + box_width / 2) * width,
        (y_center + box_height / 2) * height,
    ]
