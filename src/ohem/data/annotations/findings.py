"""Notes and faults while a data set is read. Notes are counted by kind, and each kind is reported once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ohem.errors import InputError

NAMED = 3
"""Number of files that a message names."""
_CORRECT = "correct them to avoid this warning"


def first_of(names: Sequence[str]) -> str:
    """Returns the first few of `names` for a message."""
    return ", ".join(map(repr, names[:NAMED])) + ", ..." * (len(names) > NAMED)


class Note(Enum):
    """A kind of correction or guess: its text, in which {} is the number, and what to do."""

    CLIPPED = ("clipped {} box{es} reaching outside the image", _CORRECT)
    CLIPPED_TURNED = (
        "clipped {} box{es} reaching outside an image that its EXIF orientation turns",
        "if they were drawn on the image as viewers show it, write the width and height of that into the annotation",
    )
    SKIPPED = ("skipped {} box{es} inverted or without area", _CORRECT)
    SIZE_READ = ("took the size of {} image{s} from the image, since the annotation states none", "no need to act")
    TURNED = ("turned {} image{s} upright by the EXIF orientation, as annotated", "no need to act")
    TURNED_WITH_BOXES = (
        "turned {} image{s} upright by the EXIF orientation, and the boxes with them, since the stated size is that of "
        "the image as it is stored",
        "if the boxes were drawn on the upright image, state the size of that",
    )
    TURNED_UNKNOWN = (
        "turned {} image{s} upright by the EXIF orientation and assumed that the boxes were drawn so, which the size "
        "does not decide",
        "check some of them, and store the images upright if the boxes are not where they should be",
    )
    IGNORED = ("ignored {} object{s} whose field ignore is 1, as pycocotools does", "no need to act")
    RENAMED = ("read {} class name{s} that differ from another in blanks or composed letters as that", _CORRECT)
    UNREAD = (
        "did not read {} element{s} whose name is similar to a name of VOC",
        "correct the name if that one is meant",
    )
    UNLABELLED = (
        "took {} image{s} whose label file is missing or empty as image{s} without an object",
        "label them if they have some",
    )
    REPEATED = ("left out {} row{s} that repeat{verb} another of the same file", "no need to act")
    GROUP = (
        "left out {} categor{ies} without an object that only group{verb} others",
        "name them with --data.classes to train on them",
    )

    def text(self, count: int) -> str:
        """Returns the text for `count` notes of the kind."""
        several = count > 1
        text: str = self.value[0]
        return text.format(
            count, s="s" * several, es="es" * several, ies="ies" if several else "y", verb="" if several else "s"
        )


@dataclass
class Findings:
    """Notes and faults of one data set."""

    notes: dict[Note, Counter[str]] = field(default_factory=dict)
    """Kind -> place, as a message names it -> number of notes."""
    faults: list[tuple[str, InputError]] = field(default_factory=list)
    """File and error."""

    def note(self, kind: Note, where: str | Path) -> None:
        """Counts a note of a kind at the place `where`."""
        self.notes.setdefault(kind, Counter())[str(where)] += 1

    def add(self, other: Findings) -> None:
        """Adds the notes and faults of `other`."""
        for kind, places in other.notes.items():
            self.notes.setdefault(kind, Counter()).update(places)
        self.faults += other.faults

    @contextmanager
    def collected(self, file: str | Path) -> Iterator[None]:
        """Keeps an `InputError` about `file` for the end, so that all files are reported at once."""
        try:
            yield
        except InputError as error:
            self.faults.append((str(file), error))

    def refuse(self) -> None:
        """Raises `InputError` with the first fault and the number of other files with faults, if there are any."""
        if not self.faults:
            return
        (first, error), *_ = self.faults
        others = [file for file in dict.fromkeys(file for file, _ in self.faults) if file != first]
        if not others:
            raise error
        names = ", ".join(others[:NAMED]) + ", ..." * (len(others) > NAMED)
        raise InputError(f"{error} ({len(others)} more with a fault: {names})") from error

    def warn(self, dataset: str, stacklevel: int = 3) -> None:
        """Warns once about each kind of note."""
        for kind in Note:
            places = self.notes.get(kind)
            if places:
                more = f", in {len(places)} annotations" if len(places) > 1 else ", in 1 annotation"
                warnings.warn(
                    f"{dataset}: {kind.text(places.total())}{more}, the first of them {next(iter(places))}; "
                    f"{kind.value[1]}",
                    UserWarning,
                    stacklevel=stacklevel,
                )
