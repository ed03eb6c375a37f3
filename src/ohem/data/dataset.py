"""What data sets of every format share: sources in a row, names for images, labels for classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from ohem.data.annotation import Annotation, Defects
from ohem.data.image import read_image
from ohem.errors import InputError

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """One of the sources of a data set."""

    text: str
    """As it was given."""
    folder: Path
    """Of the images; what is derived from them is kept in it."""
    name: str
    """Tells the source from others of the same folder."""
    ids: tuple[str, ...]
    """A name per image, unique in the folder."""
    first: int = 0
    """Place of its first image in the data set."""

    def __str__(self) -> str:
        return self.text

    @property
    def indices(self) -> slice:
        """Places of its images in the data set."""
        return slice(self.first, self.first + len(self.ids))


class DetectionSet(ABC):
    """One or several sources of one format, concatenated (the paper's 07+12).

    Every annotation is read, and compared with its image's header, on construction.

    Args:
        source: a source, or several of them.
        classes: names of the labels 1..K; if None, those that the annotations give.
        annotated: False takes images without an annotation file of their own, such as the test images of the VOC
            server, as images without objects. COCO's annotations are one file, which is always needed.

    Attributes:
        classes: names of the labels 1..K.
        annotated: whether every image's annotation file is there.
        ids: a unique name per image: that of its source, or `FOLDER/NAME` for all if two sources share one.
        sources: the sources, in order.

    Raises:
        InputError: the first defect that cannot be mended, with its file, field and remedy. Boxes reaching outside the
            image are clipped, those without area skipped, with one `UserWarning` for each kind.
    """

    form: str
    """How a source of this format is written."""
    sources: Sequence[Source]

    def __init__(
        self, source: str | Sequence[str], classes: Sequence[str] | None = None, *, annotated: bool = True
    ) -> None:
        self._must_be_annotated = annotated
        self._annotations: list[Annotation] = []
        defects = Defects()
        sources: list[Source] = []
        for text in [source] if isinstance(source, str) else source:
            read, annotations = self._read(text, defects)
            _check_disjoint(read, sources)
            sources.append(replace(read, first=len(self)))
            self._annotations += annotations
        if not sources:
            raise InputError(f"the list of sources is empty: give at least one {self.form}")
        self.sources = sources
        self.annotated = all(file.exists() for file in {annotation.file for annotation in self._annotations})
        self.ids = _unique_ids(sources)
        self.classes = self._given_classes() if classes is None else tuple(classes)
        self._labels = _numbered(self.classes, self._annotations)
        defects.warn(" + ".join(map(str, sources)))

    @abstractmethod
    def _read(self, text: str, defects: Defects) -> tuple[Source, list[Annotation]]:
        """The source `text`, and an annotation per image of it."""

    @abstractmethod
    def _given_classes(self) -> tuple[str, ...]:
        """The classes that the annotations give, in the order of the labels."""

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """The image, `uint8 [3, H, W]` RGB, and its target."""
        return self.image(index), self.target(index)

    def path(self, index: int) -> Path:
        """The image's file."""
        return self._annotations[index].image

    def files(self) -> Iterator[Path]:
        """Every file that the data set is read from: annotations and images."""
        yield from {annotation.file for annotation in self._annotations}
        yield from (annotation.image for annotation in self._annotations)

    def size(self, index: int) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return self._annotations[index].size

    def image(self, index: int) -> Tensor:
        """`uint8 [3, H, W]`, RGB; raises `InputError` where the file is damaged behind its header."""
        return read_image(self.path(index))

    def target(self, index: int) -> Target:
        """Boxes `float32 [N, 4]`, labels `int64 [N]` in 1..K, ignore `bool [N]`; area `float32 [N]` if it is given."""
        annotation = self._annotations[index]
        target = {
            "boxes": torch.tensor(annotation.boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self._labels[name] for name in annotation.names], dtype=torch.int64),
            "ignore": torch.tensor(annotation.ignore, dtype=torch.bool),
        }
        if annotation.area is not None:
            target["area"] = torch.tensor(annotation.area, dtype=torch.float32)
        return target


def _check_disjoint(source: Source, others: Iterable[Source]) -> None:
    for other in others:
        if other.folder.resolve() == source.folder.resolve() and (both := set(other.ids) & set(source.ids)):
            raise InputError(f"the image {min(both)!r} is in both {other} and {source}: give only one of them")


def _unique_ids(sources: Sequence[Source]) -> list[str]:
    ids = [name for source in sources for name in source.ids]
    if len(set(ids)) == len(ids):
        return ids
    names = {source.folder.resolve().name for source in sources}
    clear = len(names) == len({source.folder.resolve() for source in sources})
    return [
        f"{source.folder.resolve().name if clear else source.folder.resolve()}/{name}"
        for source in sources
        for name in source.ids
    ]


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
                    f"{annotation.file} holds an object of the class {name!r}, which is not among the known ones: "
                    f"correct the name, or train with this class ({hint})"
                )
    return labels
