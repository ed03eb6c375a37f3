"""Data sets in COCO's format, checked from end to end before the first image is used.

A source is `ANNOTATIONS.json:IMAGES`: a file with images, annotations and categories, and the folder of the images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ohem.data.annotation import Annotation
from ohem.data.coco_json import read_instances
from ohem.data.dataset import DetectionSet, Source
from ohem.data.findings import Findings, Note
from ohem.errors import InputError


@dataclass(frozen=True)
class COCOSource(Source):
    """One `ANNOTATIONS.json:IMAGES` of a data set, with the numbers that its result file must use."""

    image_ids: tuple[int, ...] = ()
    category_ids: tuple[tuple[str, int], ...] = ()
    """Class names with their ids, in ascending order of ids."""
    groups: tuple[str, ...] = ()
    """Those of them that have no object and only group others."""


class COCODetection(DetectionSet):
    """One or several `ANNOTATIONS.json:IMAGES` sources, concatenated.

    The ids of a source are file names without suffix. Without `classes` these are all names in `categories`, by
    ascending category id, but for those that only group others. `ignore` of a target are COCO's crowds, and `area` is
    the annotation's own.
    """

    form = "ANNOTATIONS.json:IMAGES"
    sources: Sequence[COCOSource]

    def _read(self, text: str, findings: Findings) -> tuple[Source, list[Annotation]]:
        path, folder = parse_source(text)
        found = read_instances(path, folder, findings)
        numbers = tuple(found.image_ids), tuple(found.category_ids.items()), tuple(found.groups)
        return COCOSource(text, folder, path.stem, tuple(found.names), 0, *numbers), found.annotations

    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
        used = {name for source in self.sources for name, _ in source.category_ids if name not in source.groups}
        names = dict.fromkeys(name for source in self.sources for name, _ in source.category_ids)
        for name in names:
            if name not in used:
                findings.note(Note.GROUP, f"{name!r}")
        return tuple(name for name in names if name in used)


_FORM = re.compile(r"(?P<file>.*?\.json)(?::(?P<folder>.*))?", re.IGNORECASE | re.DOTALL)


def is_coco(text: str) -> bool:
    """Whether the source `text` is meant as `ANNOTATIONS.json:IMAGES`."""
    return _FORM.fullmatch(text) is not None


def parse_source(text: str) -> tuple[Path, Path]:
    """`ANNOTATIONS.json:IMAGES` -> file and folder; raises `InputError` without either."""
    match = _FORM.fullmatch(text)
    if match is None or not match["folder"]:
        raise InputError(
            f"the source {text!r} has no folder of images: write ANNOTATIONS.json:IMAGES, as in "
            "annotations/instances_train2017.json:train2017"
        )
    return Path(match["file"]), Path(match["folder"])
