"""What data sets of every format share: sources in a row, names for images, labels for classes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ohem.data.annotation import Annotation, class_name
from ohem.data.findings import NAMED, Findings, first_of
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
        skip_others: skip the objects of other classes than `classes`, with a `UserWarning` that counts them; they are
            an error if not.

    Attributes:
        classes: names of the labels 1..K.
        annotated: whether every image's annotation file is there.
        ids: a unique name per image: that of its source, or `FOLDER/NAME` for all if two sources share one.
        sources: the sources, in order.
        other_classes: names in the annotations that `classes` lacks, of which objects are skipped.

    Raises:
        InputError: an annotation has a fault, with its file, field and remedy, and how many more have some. What is
            changed, skipped or guessed is said in one `UserWarning` for each kind; see `Note`.
    """

    form: str
    """How a source of this format is written."""
    sources: Sequence[Source]
    other_classes: tuple[str, ...] = ()

    def __init__(
        self,
        source: str | Sequence[str],
        classes: Sequence[str] | None = None,
        *,
        annotated: bool = True,
        skip_others: bool = False,
    ) -> None:
        self._must_be_annotated = annotated
        self._annotations: list[Annotation] = []
        findings = Findings()
        sources: list[Source] = []
        for text in [source] if isinstance(source, str) else source:
            read, annotations = self._read(text, findings)
            _check_disjoint(read, sources)
            sources.append(replace(read, first=len(self)))
            self._annotations += annotations
        if not sources:
            raise InputError(f"the list of sources is empty: give at least one {self.form}")
        findings.refuse()
        self.sources = sources
        self.annotated = all(file.exists() for file in {annotation.file for annotation in self._annotations})
        self.ids = _unique_ids(sources)
        title = " + ".join(map(str, sources))
        if classes is None:
            self.classes = self._given_classes(findings)
        else:
            self.classes = tuple(class_name(name) for name in classes)
            self.other_classes = _other_classes(self._annotations, self.classes, title, skip_others)
            self._annotations = [annotation.of_classes(set(self.classes)) for annotation in self._annotations]
        self._labels = {name: label for label, name in enumerate(self.classes, start=1)}
        findings.warn(title)

    @abstractmethod
    def _read(self, text: str, findings: Findings) -> tuple[Source, list[Annotation]]:
        """The source `text`, and an annotation for each image of it without a fault; `findings` gets the faults."""

    @abstractmethod
    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
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
        """`(height, width)` in pixels, upright."""
        return self._annotations[index].frame.upright

    def as_annotated(self, index: int, boxes: Tensor) -> Tensor:
        """Boxes `[N, 4]` of the upright image in the frame of its annotation, for result files that go with that."""
        turned = self._annotations[index].frame.turned_back(boxes.numpy(force=True))
        return torch.from_numpy(np.ascontiguousarray(turned)).to(boxes)

    def image(self, index: int) -> Tensor:
        """`uint8 [3, H, W]`, RGB, upright; raises `InputError` where the file is damaged behind its header."""
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

    def objects(self) -> Counter[str]:
        """How many objects there are of each class, without those to be ignored."""
        return Counter(
            name
            for annotation in self._annotations
            for name, ignore in zip(annotation.names, annotation.ignore, strict=True)
            if not ignore
        )


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


def _other_classes(
    annotations: Sequence[Annotation], classes: tuple[str, ...], title: str, skip: bool
) -> tuple[str, ...]:
    """Names in the annotations that are not among `classes`: says that their objects are skipped, or refuses them."""
    known = set(classes)
    if len(known) < len(classes) or "" in known:
        raise InputError(f"the classes {', '.join(classes)} hold a name twice, or an empty one: remove it")
    others = Counter(name for annotation in annotations for name in annotation.names if name not in known)
    if not others:
        return ()
    first = next(annotation for annotation in annotations if not known.issuperset(annotation.names))
    count = f"{others.total()} object{'s' * (others.total() > 1)}"
    hints = ", ".join(_with_hint(name, classes) for name in list(others)[:NAMED]) + ", ..." * (len(others) > NAMED)
    where = f"of other classes than {first_of(classes)}: {hints}; the first of them in {first.file}"
    if not skip:
        raise InputError(
            f"{title} has {count} {where}: correct the names, or train with these classes (objects of others than "
            "those that --data.classes names are skipped)"
        )
    warnings.warn(f"{title}: skipped {count} {where}", UserWarning, stacklevel=3)
    return tuple(sorted(others))


def _with_hint(name: str, classes: Sequence[str]) -> str:
    near = get_close_matches(name, classes, n=1)
    return f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
