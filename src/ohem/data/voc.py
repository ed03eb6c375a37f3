"""Data sets in the layout of PASCAL VOC, checked from end to end before the first image is used.

A source is `FOLDER:SPLIT`:

    FOLDER/ImageSets/Main/SPLIT.txt   one image id a line (a flag behind it, as in class files, is not read)
    FOLDER/JPEGImages/ID.jpg          or another image format
    FOLDER/Annotations/ID.xml

Boxes in XML are 1-based with the end included; here they are `[xmin - 1, ymin - 1, xmax, ymax]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ohem.data.annotation import Annotation, Defects, read_annotation
from ohem.data.image import image_size, read_image
from ohem.errors import InputError

Target = dict[str, Tensor]
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # in order of preference


@dataclass(frozen=True)
class Source:
    """One `FOLDER:SPLIT` of a data set; `ids` are file stems, `indices` their places in the data set."""

    folder: Path
    split: str
    ids: tuple[str, ...]
    indices: slice

    def __str__(self) -> str:
        return f"{self.folder}:{self.split}"


class VOCDetection:
    """One or several `FOLDER:SPLIT` sources, concatenated (the paper's 07+12).

    Every annotation is parsed, and compared with its image's header, on construction.

    Args:
        source: `FOLDER:SPLIT`, or several of them.
        classes: names of the labels 1..K; if None, the names found in the annotations, sorted.
        annotated: False takes images without an annotation file, such as the test images of the VOC server, as images
            without objects.

    Attributes:
        classes: names of the labels 1..K.
        annotated: whether every image has an annotation file.
        ids: a unique name per image: the file's stem, or `FOLDER/STEM` for all if two sources share a stem.
        sources: the sources, in order.

    Raises:
        InputError: the first defect that cannot be mended, with its file, field and remedy. Boxes reaching outside the
            image are clipped, those without area (`xmax <= xmin`) skipped, with one `UserWarning` for each kind.
    """

    def __init__(
        self, source: str | Sequence[str], classes: Sequence[str] | None = None, *, annotated: bool = True
    ) -> None:
        self.sources: list[Source] = []
        self._paths: list[Path] = []
        self._annotations: list[Annotation] = []
        defects = Defects()
        for text in [source] if isinstance(source, str) else source:
            self._append(text, defects, annotated)
        if not self.sources:
            raise InputError("the list of sources is empty: give at least one FOLDER:SPLIT")
        self.annotated = all(annotation.path.exists() for annotation in self._annotations)
        self.ids = _unique_ids(self.sources)
        self.classes = _class_names(self._annotations) if classes is None else tuple(classes)
        self._labels = _numbered(self.classes, self._annotations)
        defects.warn(" + ".join(map(str, self.sources)))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """The image, `uint8 [3, H, W]` RGB, and its target."""
        return self.image(index), self.target(index)

    def path(self, index: int) -> Path:
        """The image's file."""
        return self._paths[index]

    def size(self, index: int) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return self._annotations[index].size

    def image(self, index: int) -> Tensor:
        """`uint8 [3, H, W]`, RGB; raises `InputError` where the file is damaged behind its header."""
        return read_image(self._paths[index])

    def target(self, index: int) -> Target:
        """Boxes `float32 [N, 4]`, labels `int64 [N]` in 1..K and ignore `bool [N]` (VOC's `difficult`)."""
        annotation = self._annotations[index]
        return {
            "boxes": torch.tensor(annotation.boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self._labels[name] for name in annotation.names], dtype=torch.int64),
            "ignore": torch.tensor(annotation.difficult, dtype=torch.bool),
        }

    def _append(self, text: str, defects: Defects, annotated: bool) -> None:
        folder, split = parse_source(text)
        ids = _read_split(folder, split)
        images = _image_files(folder)
        for source in self.sources:
            if source.folder.resolve() == folder.resolve() and (both := set(source.ids) & set(ids)):
                raise InputError(
                    f"the image {min(both)!r} is in both {source} and {folder}:{split}: give only one of them"
                )
        for stem in ids:
            if stem not in images:
                raise InputError(
                    f"{folder / 'JPEGImages'} has no image of the id {stem!r} in {_split_file(folder, split)}: "
                    f"add {stem}.jpg, or remove the id"
                )
            self._paths.append(images[stem])
            path = folder / "Annotations" / f"{stem}.xml"
            read = annotated or path.exists()
            self._annotations.append(
                read_annotation(path, images[stem], defects) if read else _none(path, images[stem])
            )
        self.sources.append(Source(folder, split, tuple(ids), slice(len(self) - len(ids), len(self))))


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
    return Annotation(path, image_size(image), [], np.zeros((0, 4), np.float32), [])


def _image_files(folder: Path) -> dict[str, Path]:
    """Stem -> file of all images of the folder: one listing, where a look at each id and suffix would be slow."""
    images = folder / "JPEGImages"
    if not images.is_dir():
        raise InputError(f"the folder {images} does not exist: put the images there, as ID.jpg")
    files = [file for file in images.iterdir() if file.suffix.lower() in _SUFFIXES]
    files.sort(key=lambda file: (-_SUFFIXES.index(file.suffix.lower()), file.name))
    return {file.stem: file for file in files}


def _unique_ids(sources: Sequence[Source]) -> list[str]:
    stems = [stem for source in sources for stem in source.ids]
    if len(set(stems)) == len(stems):
        return stems
    names = {source.folder.resolve().name for source in sources}
    clear = len(names) == len({source.folder.resolve() for source in sources})
    return [
        f"{source.folder.resolve().name if clear else source.folder.resolve()}/{stem}"
        for source in sources
        for stem in source.ids
    ]


def _class_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    return tuple(sorted({name for annotation in annotations for name in annotation.names}))


def _numbered(classes: tuple[str, ...], annotations: Iterable[Annotation]) -> dict[str, int]:
    """Class name -> label; raises `InputError` where an annotation holds another name."""
    labels = {name: label for label, name in enumerate(classes, start=1)}
    if len(labels) < len(classes):
        raise InputError(f"the classes {', '.join(classes)} hold a name twice: remove one of them")
    for annotation in annotations:
        for name in annotation.names:
            if name not in labels:
                near = get_close_matches(name, classes, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the known classes are {', '.join(classes)}"
                raise InputError(
                    f"{annotation.path} holds an object of the class {name!r}, which is not among the known ones: "
                    f"correct the name, or train with this class ({hint})"
                )
    return labels
