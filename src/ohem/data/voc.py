"""Data sets in the layout of PASCAL VOC, checked from end to end before the first image is used.

A source is `FOLDER:SPLIT`:

    FOLDER/ImageSets/Main/SPLIT.txt   one image id a line (a flag behind it, as in class files, is not read)
    FOLDER/JPEGImages/ID.jpg          or another image format
    FOLDER/Annotations/ID.xml

Boxes in XML are 1-based with the end included; here they are `[xmin - 1, ymin - 1, xmax, ymax]`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ohem.data.annotation import Annotation, Defects
from ohem.data.dataset import DetectionSet, Source
from ohem.data.image import image_size
from ohem.data.voc_xml import read_annotation
from ohem.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # in order of preference


class VOCDetection(DetectionSet):
    """One or several `FOLDER:SPLIT` sources, concatenated (the paper's 07+12).

    The ids of a source are file stems. Without `classes` these are the names found in the annotations, sorted. `ignore`
    of a target is VOC's `difficult`.
    """

    form = "FOLDER:SPLIT"

    def _read(self, text: str, defects: Defects) -> tuple[Source, list[Annotation]]:
        folder, split = parse_source(text)
        ids = _read_split(folder, split)
        images = _image_files(folder)
        annotations = []
        for stem in ids:
            if stem not in images:
                raise InputError(
                    f"{folder / 'JPEGImages'} has no image of the id {stem!r} in {_split_file(folder, split)}: "
                    f"add {stem}.jpg, or remove the id"
                )
            path = folder / "Annotations" / f"{stem}.xml"
            read = self._must_be_annotated or path.exists()
            annotations.append(read_annotation(path, images[stem], defects) if read else _none(path, images[stem]))
        return Source(f"{folder}:{split}", folder, split, tuple(ids)), annotations

    def _given_classes(self) -> tuple[str, ...]:
        return tuple(sorted({name for annotation in self._annotations for name in annotation.names}))


def parse_source(text: str) -> tuple[Path, str]:
    """`FOLDER:SPLIT` -> folder and split, divided at the last colon; raises `InputError` where one is missing."""
    folder, _, split = text.rpartition(":")
    if not folder or not split:
        raise InputError(f"the source {text!r} has no split: write FOLDER:SPLIT, as in VOC2007:trainval")
    return Path(folder), split


def _split_file(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def _read_split(folder: Path, split: str) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist: correct the source {f'{folder}:{split}'!r}")
    path = _split_file(folder, split)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt")))
        remedy = f"choose among {known}" if known else "create it, with one image id a line"
        raise InputError(f"the split file {path} does not exist: {remedy}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the split file {path} cannot be read ({error}): save it as UTF-8 text") from error
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        stem = _without_flag(line.strip())
        if stem in first_seen:
            raise InputError(
                f"{path} lists {stem!r} twice, in lines {first_seen[stem]} and {number}: remove one of them"
            )
        first_seen[stem] = number
    if not first_seen:
        raise InputError(f"the split file {path} is empty: write one image id a line")
    return list(first_seen)


def _without_flag(line: str) -> str:
    """The id of a line; a class's split file has -1, 0 or 1 behind it. An id may hold blanks itself."""
    columns = line.rsplit(maxsplit=1)
    return columns[0] if columns[-1] in {"-1", "0", "1"} else line


def _none(path: Path, image: Path) -> Annotation:
    """What stands for an annotation that is not there."""
    return Annotation(path, image, image_size(image), [], np.zeros((0, 4), np.float32), [])


def _image_files(folder: Path) -> dict[str, Path]:
    """Stem -> file of all images of the folder: one listing, where a look at each id and suffix would be slow."""
    images = folder / "JPEGImages"
    if not images.is_dir():
        raise InputError(f"the folder {images} does not exist: put the images there, as ID.jpg")
    files = [file for file in images.iterdir() if file.suffix.lower() in _SUFFIXES]
    files.sort(key=lambda file: (-_SUFFIXES.index(file.suffix.lower()), file.name))
    return {file.stem: file for file in files}
