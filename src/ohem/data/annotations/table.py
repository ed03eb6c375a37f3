"""The annotations of many images in arrays: small, quick to copy to other processes, and shared by forked ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ohem.data.annotations.annotation import Annotation, Floats, Frame
from ohem.io.texts import Ints, Texts, rows_of, starts_of

_OF_OBJECTS = ("boxes", "ignore", "area")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnnotationTable(Sequence[Annotation]):
    """The annotations of M images with N objects in all. Each access makes an `Annotation`."""

    files: Texts
    """`[M]` file of each annotation."""
    images: Texts
    """`[M]` file of each image."""
    frames: npt.NDArray[np.int32]
    """`[M, 6]` fields of each `Frame`: size, upright size, orientation, whether it has one in its EXIF data."""
    starts: Ints
    """`[M + 1]` first object of each image; the last is N."""
    names: tuple[str, ...]
    """Names of the classes that have objects, in order of their first object."""
    classes: npt.NDArray[np.int32]
    """`[N]` index of the class of each object in `names`."""
    boxes: Floats
    """`[N, 4]`."""
    ignore: Bools
    """`[N]`."""
    area: Floats
    """`[N]` area as the format states it; 0 where it states none."""
    has_area: Bools
    """`[M]` whether the format states the areas of the objects of each image."""

    @classmethod
    def of(cls, annotations: Sequence[Annotation]) -> AnnotationTable:
        """Returns the table of `annotations`."""
        numbers: dict[str, int] = {}
        classes = [numbers.setdefault(name, len(numbers)) for one in annotations for name in one.names]
        areas = [np.zeros(len(one.names)) if one.area is None else one.area for one in annotations]
        return cls(
            Texts.of(str(one.file) for one in annotations),
            Texts.of(str(one.image) for one in annotations),
            np.array([as_row(one.frame) for one in annotations], np.int32).reshape(-1, 6),
            starts_of([len(one.names) for one in annotations]),
            tuple(numbers),
            np.array(classes, np.int32),
            np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in annotations)]),
            np.array([flag for one in annotations for flag in one.ignore], np.bool_),
            np.concatenate([np.zeros(0), *areas]).astype(np.float32),
            np.array([one.area is not None for one in annotations], np.bool_),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> Annotation: ...
    @overload
    def __getitem__(self, index: slice) -> AnnotationTable: ...
    def __getitem__(self, index: int | slice) -> Annotation | AnnotationTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        objects = self.objects(index)
        return Annotation(
            Path(self.files[index]),
            Path(self.images[index]),
            self.frame(index),
            [self.names[number] for number in self.classes[objects]],
            self.boxes[objects],
            self.ignore[objects].tolist(),
            self.area[objects] if self.has_area[index] else None,
        )

    def objects(self, index: int) -> slice:
        """Returns where the objects of an image are."""
        return slice(self.starts[:-1][index], self.starts[1:][index])

    def frame(self, index: int) -> Frame:
        """Returns the image that the boxes of an image refer to."""
        height, width, upright_height, upright_width, orientation, has_exif = self.frames[index].tolist()
        return Frame((height, width), (upright_height, upright_width), orientation, bool(has_exif))

    def take(self, indices: Sequence[int] | Ints) -> AnnotationTable:
        """Returns the annotations of the images at `indices`, in their order."""
        at = np.asarray(indices, np.int64)
        rows, starts = rows_of(self.starts, at)
        return replace(
            self,
            files=self.files.take(at),
            images=self.images.take(at),
            frames=self.frames[at],
            starts=starts,
            has_area=self.has_area[at],
            **self._objects(rows),
        )

    def of_classes(self, names: Collection[str]) -> AnnotationTable:
        """Returns the table with only the objects of the classes `names`."""
        kept = np.array([name in names for name in self.names], np.bool_)[self.classes]
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return replace(self, starts=starts, **self._objects(np.flatnonzero(kept)))

    def joined(self, other: AnnotationTable) -> AnnotationTable:
        """Returns the table with the annotations of `other` at its end."""
        names = tuple(dict.fromkeys([*self.names, *other.names]))
        renumbered = np.array([names.index(name) for name in other.names], np.int32)[other.classes]
        return AnnotationTable(
            self.files.joined(other.files),
            self.images.joined(other.images),
            np.concatenate([self.frames, other.frames]),
            np.concatenate([self.starts, other.starts[1:] + self.starts[-1]]),
            names,
            np.concatenate([self.classes, renumbered]),
            *(np.concatenate([getattr(self, key), getattr(other, key)]) for key in (*_OF_OBJECTS, "has_area")),
        )

    def objects_by_class(self, *, ignored: bool) -> Counter[str]:
        """Counts the objects of each class, with or without ignored ones; classes are in order of the first object."""
        classes = self.classes if ignored else self.classes[~self.ignore]
        counts = np.bincount(classes, minlength=len(self.names)).tolist()
        return Counter({name: number for name, number in zip(self.names, counts, strict=True) if number})

    def file_of(self, names: Collection[str]) -> str:
        """Returns the file of the first object of the classes `names`."""
        wanted = np.array([name in names for name in self.names], np.bool_)
        first = int(wanted[self.classes].argmax())
        return self.files[int(np.searchsorted(self.starts, first, side="right")) - 1]

    def places(self) -> Iterator[str]:
        """Yields each annotation file once."""
        yield from dict.fromkeys(self.files)

    def _objects(self, rows: Ints) -> dict[str, Any]:
        return {name: getattr(self, name)[rows] for name in ("classes", *_OF_OBJECTS)}


def as_row(frame: Frame) -> tuple[int, ...]:
    """Returns the fields of `frame` as a row of `AnnotationTable.frames`."""
    return (*frame.size, *frame.upright, frame.orientation, frame.has_exif)
