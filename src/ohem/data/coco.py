"""Data sets in COCO's format. They are checked completely before the first image is used.

A source is `ANNOTATIONS.json:IMAGES`: a file with images, annotations and categories, and the folder of the images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ohem.data.annotations.findings import Findings, Note
from ohem.data.annotations.table import AnnotationTable
from ohem.data.coco_index import read_indexed
from ohem.data.coco_json import image_names
from ohem.data.dataset import DetectionSet, Source
from ohem.errors import InputError
from ohem.io.archives import local_file, unpacked, without_chains
from ohem.io.remote import RemoteFolder, is_remote


@dataclass(frozen=True)
class COCOSource(Source):
    """One source `ANNOTATIONS.json:IMAGES`, with the ids that its result file must use."""

    image_ids: tuple[int, ...] = ()
    category_ids: tuple[tuple[str, int], ...] = ()
    """Class names and their ids, in ascending order of ids."""
    groups: tuple[str, ...] = ()
    """Class names without objects that only group others."""

    def part(self, positions: Sequence[int], first: int) -> COCOSource:
        ids = tuple(self.image_ids[i] for i in positions)
        return replace(self, ids=tuple(self.ids[i] for i in positions), first=first, image_ids=ids)


class COCODetection(DetectionSet):
    """One or several `ANNOTATIONS.json:IMAGES` sources, concatenated.

    The ids of a source are file names without suffix. The default of `classes` is all names in `categories`, by
    ascending category id, except names that only group others. `ignore` of a target marks crowds, and `area` is that of
    the annotation.
    """

    form = "ANNOTATIONS.json:IMAGES"
    layout = "in COCO's format"
    sources: Sequence[COCOSource]

    def _read(self, text: str, findings: Findings) -> tuple[Source, AnnotationTable]:
        path, folder = _on_this_machine(text)
        instances = read_indexed(path, folder, findings)
        numbers = tuple(instances.image_ids), tuple(instances.category_ids.items()), tuple(instances.groups)
        source = COCOSource(f"{path}:{folder}", folder, path.stem, tuple(instances.names), 0, *numbers)
        return source, instances.annotations

    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
        used = {name for source in self.sources for name, _ in source.category_ids if name not in source.groups}
        names = dict.fromkeys(name for source in self.sources for name, _ in source.category_ids)
        for name in names:
            if name not in used:
                findings.note(Note.GROUP, f"{name!r}")
        return tuple(name for name in names if name in used)


_FORM = re.compile(r"(?P<file>.*?\.json)(?::(?P<folder>.*))?", re.IGNORECASE | re.DOTALL)


def is_coco(text: str) -> bool:
    """Returns whether the source `text` has the form `ANNOTATIONS.json:IMAGES`."""
    return _FORM.fullmatch(text) is not None


def parse_source(text: str) -> tuple[Path, Path]:
    """Divides `ANNOTATIONS.json:IMAGES` into file and folder; raises `InputError` where one is missing."""
    file, folder = _divide(text)
    return Path(file), Path(folder)


def _divide(text: str) -> tuple[str, str]:
    match = _FORM.fullmatch(text)
    if match is None or not match["folder"]:
        raise InputError(
            f"the source {text!r} has no folder of images: write ANNOTATIONS.json:IMAGES, as in "
            "annotations/instances_train2017.json:train2017"
        )
    return match["file"], match["folder"]


def _on_this_machine(text: str) -> tuple[Path, Path]:
    """Returns file and folder of a source, which are unpacked or fetched first."""
    file, place = _divide(without_chains(text))
    path, place = local_file(file), unpacked(place)
    if not is_remote(place):
        return path, Path(place)
    remote = RemoteFolder(place)
    remote.copy.mkdir(parents=True, exist_ok=True)
    remote.fetch(image_names(path))
    return path, remote.copy
