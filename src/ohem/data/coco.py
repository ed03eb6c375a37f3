"""Data sets in COCO's format, checked from end to end before the first image is used.

A source is `ANNOTATIONS.json:IMAGES`: a file with images, annotations and categories, and the folder of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ohem.data.annotation import Annotation, Defects
from ohem.data.coco_json import read_instances
from ohem.data.dataset import DetectionSet, Source
from ohem.errors import InputError


@dataclass(frozen=True)
class COCOSource(Source):
    """One `ANNOTATIONS.json:IMAGES` of a data set, with the numbers that its result file must use."""

    image_ids: tuple[int, ...] = ()
    category_ids: tuple[tuple[str, int], ...] = ()
    """Class names with their ids, in ascending order of ids."""


class COCODetection(DetectionSet):
    """One or several `ANNOTATIONS.json:IMAGES` sources, concatenated.

    The ids of a source are file names without suffix. Without `classes` these are all names in `categories`, by
    ascending category id. `ignore` of a target are COCO's crowds, and `area` is the annotation's own.
    """

    form = "ANNOTATIONS.json:IMAGES"
    sources: Sequence[COCOSource]

    def _read(self, text: str, defects: Defects) -> tuple[Source, list[Annotation]]:
        path, folder = parse_source(text)
        found = read_instances(path, folder, defects)
        numbers = tuple(found.image_ids), tuple(found.category_ids.items())
        return COCOSource(text, folder, path.stem, tuple(found.names), 0, *numbers), found.annotations

    def _given_classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for source in self.sources for name, _ in source.category_ids))


def is_coco(text: str) -> bool:
    """Whether the source `text` is meant as `ANNOTATIONS.json:IMAGES`."""
    return text.rpartition(":")[0].lower().endswith(".json") or text.lower().endswith(".json")


def parse_source(text: str) -> tuple[Path, Path]:
    """`ANNOTATIONS.json:IMAGES` -> file and folder, divided at the last colon; raises `InputError` without either."""
    path, _, folder = text.rpartition(":")
    if not path or not folder:
        raise InputError(
            f"the source {text!r} has no folder of images: write ANNOTATIONS.json:IMAGES, as in "
            "annotations/instances_train2017.json:train2017"
        )
    return Path(path), Path(folder)
