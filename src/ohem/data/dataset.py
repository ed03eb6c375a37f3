"""Data sets of all formats: concatenated sources, names of images, labels of classes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ohem.data.annotations.annotation import Annotation, class_name, without_objects
from ohem.data.annotations.findings import NAMED, Findings, first_of
from ohem.data.annotations.table import AnnotationTable
from ohem.data.transforms import read_image
from ohem.errors import InputError, closest
from ohem.images.files import images_below, images_by_id, is_image
from ohem.io.archives import unpacked
from ohem.io.remote import RemoteFolder, is_remote

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """One source of a data set."""

    text: str
    """As it was given."""
    folder: Path
    """Folder of the images; proposals are kept in it."""
    name: str
    """Name that is unique among the sources of the folder."""
    ids: tuple[str, ...]
    """Names of the images, unique in the folder."""
    first: int = 0
    """Index of its first image in the data set."""

    def __str__(self) -> str:
        return self.text

    def part(self, positions: Sequence[int], first: int) -> Source:
        """Returns the source with only the images at these positions; the first has the index `first`."""
        return replace(self, ids=tuple(self.ids[i] for i in positions), first=first)

    @property
    def indices(self) -> slice:
        """Indices of its images in the data set."""
        return slice(self.first, self.first + len(self.ids))


class DetectionSet(ABC):
    """One or several sources of one format, concatenated (the paper's 07+12).

    The constructor reads every annotation and compares it with the header of its image.

    Args:
        source: one or several sources.
        classes: names of the labels 1..K; None: those of the annotations.
        annotated: False accepts images in VOC layout without an annotation file, such as test images of the VOC server,
            as images without objects. The annotation file of COCO is always required, a label file of YOLO never.
        skip_others: whether to skip objects of other classes than `classes`, with a `UserWarning` that counts them. By
            default they are an error.

    Attributes:
        classes: names of the labels 1..K.
        annotated: whether all annotation files exist.
        ids: unique names of the images: those of the source, or `FOLDER/NAME` if two sources share a name.
        sources: the sources, in order.
        other_classes: names in the annotations that are not in `classes`; their objects are skipped.
        background: index of an image -> float32 `[P, 4]`, its regions that are always trained on, as background.

    Raises:
        InputError: an annotation has a fault. The message names file, field and remedy, and the number of other files
            with faults. Corrections and guesses are reported in one `UserWarning` for each kind; see `Note`.
    """

    form: str
    """Form of a source of this format."""
    layout: str
    """The format, as the end of "the data are ..."."""
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
        self.background: dict[int, Tensor] = {}
        findings = Findings()
        sources: list[Source] = []
        tables: list[AnnotationTable] = []
        for text in [source] if isinstance(source, str) else source:
            read, table = self._read(text, findings)
            _check_disjoint(read, sources)
            sources.append(replace(read, first=sum(map(len, tables))))
            tables.append(table)
        if not sources:
            raise InputError(f"the list of sources is empty: give at least one {self.form}")
        findings.refuse()
        self.sources = sources
        self._annotations = reduce(AnnotationTable.joined, tables)
        self.annotated = all(Path(file).exists() for file in self._annotations.places())
        self.ids = _unique_ids(sources)
        title = " + ".join(map(str, sources))
        if classes is None:
            self.classes = self._given_classes(findings)
        else:
            self.classes = tuple(class_name(name) for name in classes)
            self.other_classes = _other_classes(self._annotations, self.classes, title, skip_others)
            self._annotations = self._annotations.of_classes(self.classes)
        self._number_classes()
        findings.warn(title)

    def _number_classes(self) -> None:
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        # Classes that are left out have no object.
        self._labels = np.array([labels.get(name, 0) for name in self._annotations.names], np.int64)

    @abstractmethod
    def _read(self, text: str, findings: Findings) -> tuple[Source, AnnotationTable]:
        """Reads the source `text`; returns it and the annotations without a fault. `findings` gets the faults."""

    @abstractmethod
    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
        """Returns the classes of the annotations, in the order of the labels."""

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Returns the image, `uint8 [3, H, W]` RGB, and its target."""
        return self.image(index), self.target(index)

    def path(self, index: int) -> Path:
        """Returns the file of the image."""
        return Path(self._annotations.images[index])

    def annotation(self, index: int) -> Annotation:
        """Returns the annotation of the image, with its file and the image that its boxes refer to."""
        return self._annotations[index]

    def part(self, indices: Collection[int]) -> Self:
        """Returns the data set with only the images of these indices, in their order here, and the same classes."""
        kept = sorted(set(indices))
        part, sources = copy(self), list[Source]()
        part._annotations, part.ids = self._annotations.take(kept), [self.ids[i] for i in kept]
        for source in self.sources:
            inside = [i - source.first for i in kept if i in range(*source.indices.indices(len(self)))]
            sources.append(source.part(inside, sources[-1].indices.stop if sources else 0))
        part.sources = sources
        return part

    def add_negatives(self, folders: Sequence[str]) -> None:
        """Adds the images in `folders`, and in all folders below them, as images without an object.

        Their ids are paths relative to the folder, without suffix.

        Raises:
            InputError: a folder is missing or has no image, an image cannot be read, or is in the data set already.
        """
        findings = Findings()
        known = {self.path(index).resolve() for index in range(len(self))} if folders else set()
        sources, annotations = list(self.sources), list[Annotation]()
        for folder in folders:
            source, read = _read_folder(
                folder, " of --data.negatives", known, " + ".join(map(str, self.sources)), findings
            )
            sources.append(replace(source, first=sources[-1].indices.stop))
            annotations += read
        findings.refuse()
        self._annotations = self._annotations.joined(AnnotationTable.of(annotations))
        self.sources, self.ids = sources, _unique_ids(sources)

    def add_background(self, index: int, boxes: npt.NDArray[Any]) -> None:
        """Adds regions `[P, 4]` of an image that are always trained on, as background; see `target`."""
        added = torch.from_numpy(np.ascontiguousarray(boxes, np.float32)).reshape(-1, 4)
        self.background[index] = torch.cat([self.background.get(index, added[:0]), added])

    def files(self) -> Iterator[Path]:
        """Yields every file of the data set: annotations and images."""
        yield from map(Path, self._annotations.places())
        yield from map(Path, self._annotations.images)

    def size(self, index: int) -> tuple[int, int]:
        """Returns `(height, width)` of the upright image in pixels."""
        return self._annotations.frame(index).upright

    def as_annotated(self, index: int, boxes: Tensor) -> Tensor:
        """Turns boxes `[N, 4]` of the upright image into boxes as annotated, for result files."""
        turned = self._annotations.frame(index).turned_back(boxes.numpy(force=True))
        return torch.from_numpy(np.ascontiguousarray(turned)).to(boxes)

    def as_upright(self, index: int, boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns boxes `[N, 4]` as annotated, such as those of result files, into boxes of the upright image."""
        return self._annotations.frame(index).turned(boxes)

    def image(self, index: int) -> Tensor:
        """Reads the image, `uint8 [3, H, W]`, RGB, upright; raises `InputError` where the file is damaged."""
        return read_image(self.path(index))

    def target(self, index: int) -> Target:
        """Returns boxes `float32 [N, 4]`, labels `int64 [N]` in 1..K and ignore `bool [N]`.

        There may be area, `float32 [N]`, and background, `float32 [P, 4]`, regions that are always trained on.
        """
        table, objects = self._annotations, self._annotations.objects(index)
        target = {
            "boxes": torch.from_numpy(table.boxes[objects].copy()),
            "labels": torch.tensor(self._labels[table.classes[objects]].tolist(), dtype=torch.int64),
            "ignore": torch.from_numpy(table.ignore[objects].copy()),
        }
        if table.has_area[index]:
            target["area"] = torch.from_numpy(table.area[objects].copy())
        if index in self.background:
            target["background"] = self.background[index]
        return target

    def objects(self) -> Counter[str]:
        """Counts the objects of each class, without ignored ones."""
        return self._annotations.objects_by_class(ignored=False)


class ImageFolder(DetectionSet):
    """Images without annotations and without an object: those in folders, and in all folders below them."""

    form = "FOLDER"
    layout = "a folder of images without an object"

    def _read(self, text: str, findings: Findings) -> tuple[Source, AnnotationTable]:
        source, annotations = _read_folder(text, "", set(), text, findings)
        return source, AnnotationTable.of(annotations)

    def _given_classes(self, findings: Findings) -> tuple[str, ...]:
        return ()


def _read_folder(
    folder: str, option: str, known: set[Path], title: str, findings: Findings
) -> tuple[Source, list[Annotation]]:
    """Reads images without an object.

    Args:
        folder: the folder.
        option: text after its name in messages.
        known: resolved files that are in the data set already; those of the folder are added.
        title: name of the data set in messages.
        findings: gets the faults.
    """
    place, annotations = _on_this_machine(folder), []
    if not place.is_dir():
        raise InputError(f"the folder {place} does not exist: correct {option.removeprefix(' of ') or 'its name'}")
    images = images_by_id(images_below(place), place, f"the folder {place}{option}")
    for image in images.values():
        with findings.collected(image):
            if image.resolve() in known:
                raise InputError(f"{image}{option} is in {title} already: remove it from one")
            known.add(image.resolve())
            annotations.append(without_objects(image, image))
    return Source(f"{place}", place, "negatives", tuple(images)), annotations


def _on_this_machine(folder: str) -> Path:
    """Returns a folder of images, which is unpacked or fetched first."""
    place = unpacked(folder)
    if not is_remote(place):
        return Path(place)
    remote = RemoteFolder(place)
    try:
        remote.fetch(remote.names("", is_image, below=True))
    except FileNotFoundError as error:
        raise InputError(f"{place} does not exist: correct its address") from error
    return remote.copy


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


def _other_classes(table: AnnotationTable, classes: tuple[str, ...], title: str, skip: bool) -> tuple[str, ...]:
    """Returns names in the annotations that are not in `classes`; warns that they are skipped, or refuses them."""
    known = set(classes)
    if len(known) < len(classes) or "" in known:
        raise InputError(f"the classes {', '.join(classes)} hold a name twice, or an empty one: remove it")
    others = Counter({name: count for name, count in table.objects_by_class(ignored=True).items() if name not in known})
    if not others:
        return ()
    first = table.file_of(others)
    count = f"{others.total()} object{'s' * (others.total() > 1)}"
    hints = ", ".join(_with_hint(name, classes) for name in list(others)[:NAMED]) + ", ..." * (len(others) > NAMED)
    where = f"of other classes than {first_of(classes)}: {hints}; the first of them in {first}"
    if not skip:
        raise InputError(
            f"{title} has {count} {where}: correct the names, or train with these classes (--data.classes skips "
            "objects of other classes)"
        )
    warnings.warn(f"{title}: skipped {count} {where}", UserWarning, stacklevel=3)
    return tuple(sorted(others))


def _with_hint(name: str, classes: Sequence[str]) -> str:
    near = closest(name, classes)
    return f"{name!r} (did you mean {near!r}?)" if near else repr(name)
