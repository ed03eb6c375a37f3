"""A large file of COCO annotations, read into arrays: the same as `read_instances`, several times faster.

It reads what `read_instances` accepts. Where it meets anything that needs a message, it leaves the file to that.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ohem.data.annotations.annotation import Floats, Frame
from ohem.data.annotations.findings import Findings, Note
from ohem.data.annotations.table import AnnotationTable, Bools, as_row
from ohem.io.texts import Ints, Texts, starts_of

LARGE = 1 << 22
"""Bytes of a file that is read so. In a smaller one a field that is written twice is refused."""
LIMIT = 1e12
"""Number that no coordinate reaches."""
Doubles = npt.NDArray[np.float64]


class ImageEntry(msgspec.Struct, gc=False):
    """An entry of `images`."""

    id: int
    file_name: str
    height: int | None = None
    width: int | None = None


class ObjectEntry(msgspec.Struct, gc=False):
    """An entry of `annotations`."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0
    ignore: int = 0
    id: int | msgspec.UnsetType = msgspec.UNSET


class Content(msgspec.Struct):
    """What a file must have; other fields are passed over."""

    images: list[ImageEntry]
    categories: list[dict[str, Any]]
    annotations: list[ObjectEntry] = []


def parse(path: Path) -> Content | None:
    """Reads the file; returns None where it is small, cannot be read or is not as the classes above say."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < LARGE:
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                return msgspec.json.decode(text, type=Content)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None


class _Objects(NamedTuple):
    """The N objects of a file, in its order."""

    image: Ints
    """Position of the image in ascending order of ids."""
    category: Ints
    boxes: Doubles
    """`[N, 4]` as `[x1, y1, x2, y2]`."""
    crowd: Bools
    ignore: Bools
    area: Doubles
    """NaN where it is missing."""


def as_table(
    path: Path,
    files: Sequence[Path],
    frames: Sequence[Frame],
    ids: Sequence[int],
    entries: Sequence[ObjectEntry],
    categories: Mapping[int, str],
    findings: Findings,
) -> AnnotationTable | None:
    """Returns the annotations of M images.

    Args:
        path: file of the annotations.
        files: `[M]` images.
        frames: `[M]` what the boxes refer to.
        ids: `[M]` ids of the images, ascending.
        entries: the objects.
        categories: id -> class name.
        findings: gets the notes.

    Returns:
        The table; None, with no note, where an object has a fault.
    """
    sizes = np.array([as_row(frame) for frame in frames], np.int32).reshape(-1, 6)
    things = _arrays(entries, np.asarray(ids, np.int64), categories)
    if things is None or _in_fractions(things, len(ids)):
        return None
    height, width, has_exif = (sizes[things.image, column] for column in (0, 1, 5))
    clipped = _clip(things.boxes, width.astype(np.float64), height.astype(np.float64))
    if clipped is None:
        return None
    boxes, kept, beyond = clipped
    _note(findings, Note.SKIPPED, ~kept, entries, path)
    _note(findings, Note.CLIPPED, kept & beyond & (has_exif == 0), entries, path)
    _note(findings, Note.CLIPPED_TURNED, kept & beyond & (has_exif == 1), entries, path)
    _note(findings, Note.IGNORED, kept & things.ignore & ~things.crowd, entries, path)
    order = np.flatnonzero(kept)
    order = order[np.argsort(things.image[order], kind="stable")]
    names, classes = _classes(things.category[order], categories)
    boxes, area = boxes[order], things.area[order].astype(np.float32)
    area = np.where(np.isnan(area), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), area)
    starts = starts_of(np.bincount(things.image[order], minlength=len(ids)))
    for index in np.flatnonzero(sizes[:, 4] != 1).tolist():
        place = slice(starts[index], starts[index + 1])
        boxes[place] = frames[index].turned(boxes[place])
    return AnnotationTable(
        Texts.of([str(path)] * len(files)),
        Texts.of(map(str, files)),
        sizes,
        starts,
        names,
        classes,
        boxes,
        (things.crowd | things.ignore)[order],
        area,
        np.ones(len(files), np.bool_),
    )


def _arrays(entries: Sequence[ObjectEntry], ids: Ints, categories: Mapping[int, str]) -> _Objects | None:
    """Returns the objects as arrays; None where a field has a value that is refused."""
    count = len(entries)
    try:
        image_ids = np.fromiter((entry.image_id for entry in entries), np.int64, count)
        category = np.fromiter((entry.category_id for entry in entries), np.int64, count)
        flags = np.fromiter((entry.iscrowd + 2 * entry.ignore for entry in entries), np.int64, count)
        wrong = any(not (0 <= entry.iscrowd <= 1 and 0 <= entry.ignore <= 1) for entry in entries)
    except OverflowError:
        return None
    boxes = np.fromiter((number for entry in entries for number in entry.bbox), np.float64, 4 * count).reshape(-1, 4)
    area = np.fromiter((np.nan if entry.area is None else entry.area for entry in entries), np.float64, count)
    image = np.searchsorted(ids, image_ids).clip(max=max(len(ids) - 1, 0))
    known = np.isin(category, np.fromiter(categories, np.int64, len(categories)))
    if wrong or not known.all() or (ids[image] != image_ids).any():
        return None
    if (np.abs(boxes) >= LIMIT).any() or (area < 0).any() or (area >= LIMIT).any():
        return None
    boxes[:, 2:] += boxes[:, :2]
    return _Objects(image, category, boxes, (flags & 1).astype(bool), flags >= 2, area)


def _in_fractions(things: _Objects, images: int) -> bool:
    """Returns whether an image seems to have only boxes in fractions of its size."""
    raw = things.boxes.copy()
    raw[:, 2:] -= raw[:, :2]
    small = ((raw >= -1e-6) & (raw <= 1 + 1e-6)).all(axis=1)
    others = np.bincount(things.image[~small], minlength=images)
    return bool(((np.bincount(things.image[small], minlength=images) > 0) & (others == 0)).any())


def _clip(boxes: Doubles, width: Doubles, height: Doubles) -> tuple[Floats, Bools, Bools] | None:
    """Clips boxes `[N, 4]` as `clip_box` does.

    Returns:
        float32 `[N, 4]`; whether each is kept; whether it reaches more than a pixel beyond its image. None where most
        of one lies outside.
    """
    x1, y1, x2, y2 = boxes.T
    kept = (x2 > x1) & (y2 > y1)
    left, top, right, bottom = np.maximum(x1, 0), np.maximum(y1, 0), np.minimum(x2, width), np.minimum(y2, height)
    shared = np.maximum(0.0, right - left) * np.maximum(0.0, bottom - top)
    beyond = (np.minimum(x1, y1) < -1) | (x2 > width + 1) | (y2 > height + 1)
    if (kept & beyond & (shared < 0.5 * (x2 - x1) * (y2 - y1))).any():
        return None
    inside = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
    return inside, kept & (inside[:, 2:] > inside[:, :2]).all(axis=1), beyond


def _note(findings: Findings, kind: Note, which: Bools, entries: Sequence[ObjectEntry], path: Path) -> None:
    for place in np.flatnonzero(which).tolist():
        number = entries[place].id
        unnamed = f"entry {place + 1} of the annotations of {path}"
        findings.note(kind, unnamed if number is msgspec.UNSET else f"annotation {shortened(number)} of {path}")


def _classes(category: Ints, categories: Mapping[int, str]) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Returns the class names in the order of their first object, and the index of each object's class in them."""
    present, first, inverse = np.unique(category, return_index=True, return_inverse=True)
    ordered = [categories[int(present[k])] for k in np.argsort(first)]
    names = tuple(dict.fromkeys(ordered))
    numbers = np.array([names.index(categories[int(number)]) for number in present], np.int32)
    return names, numbers[inverse.reshape(-1)].astype(np.int32) if len(present) else np.zeros(0, np.int32)
