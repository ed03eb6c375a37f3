"""The proposals of a data set: those of methods, cached per source, sliding windows, or files of the user."""

from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ohem.config.schema import ProposalConfig, ProposalMode
from ohem.data.coco import COCOSource
from ohem.data.dataset import DetectionSet, Source
from ohem.errors import InputError
from ohem.proposals.box_files import BoxFile
from ohem.proposals.boxes import fault_of_boxes
from ohem.proposals.edge_boxes import EdgeBoxes
from ohem.proposals.generate import cache_name, cache_path, generate, is_generated
from ohem.proposals.index import Rows
from ohem.proposals.methods import Method, union_of
from ohem.proposals.selective_search import SelectiveSearch
from ohem.proposals.shards import Shards
from ohem.proposals.windows import SlidingWindows

Place = tuple[Shards | BoxFile, str, tuple[int, int]]
"""File of an image, its id there, its size."""


def build_proposals(data: DetectionSet, config: ProposalConfig) -> Mapping[str, Any]:
    """Returns image id -> (P, 4) boxes: of the methods, which run where they are missing, windows, or files.

    Raises:
        InputError: the boxes cannot be made or read, or a method lacks its model.
    """
    if config.files:
        return _from_files(data, config.files)
    if "sliding" in config.mode:
        return SlidingWindows({name: data.size(index) for index, name in enumerate(data.ids)}, config.windows)
    parts = [_made_by(method, data, config) for method in methods_of(config)]
    if not parts:
        return dict.fromkeys(data.ids, np.zeros((0, 4), np.float32))
    return parts[0] if len(parts) == 1 else _Union(parts, config.top)


def methods_of(config: ProposalConfig) -> list[Method]:
    """Returns the methods of `config.mode`, none for `none` and `sliding`.

    Raises:
        InputError: there is no such method, or the model of Edge Boxes cannot be read.
    """
    methods: list[Method] = []
    for mode in config.mode:
        if mode in ("fast", "quality"):
            methods.append(SelectiveSearch(mode, config.seed, config.width))
        elif mode == "edge-boxes":
            methods.append(EdgeBoxes.of(Path(config.edge_model or ""), config.width))
        elif mode not in ("none", "sliding"):
            raise InputError(f"there is no proposal method {mode!r}: use one of {', '.join(get_args(ProposalMode))}")
    return methods


def most_proposals(config: ProposalConfig) -> int:
    """Returns the highest number of proposals of an image that are used: `top` would cut off the smallest windows."""
    return config.windows if "sliding" in config.mode else config.top * len(config.mode)


def _made_by(method: Method, data: DetectionSet, config: ProposalConfig) -> "_Cached":
    """Returns the boxes of one method, which runs where they are missing."""
    _check_places(data, config.folder, method)
    files = [
        generate(_Images(data, source), _cache(source, config.folder, method), method, jobs=config.jobs)
        for source in data.sources
    ]
    return _Cached(_Places(data, files))


def check_cached(data: DetectionSet, config: ProposalConfig) -> None:
    """Raises `InputError` where proposals are missing: other processes would not wait long enough."""
    for source, method in product(data.sources, () if config.files else methods_of(config)):
        if not is_generated(_Images(data, source), _cache(source, config.folder, method), method):
            raise InputError(
                f"{source.folder} has no proposals yet, or not of all its images, for which several processes cannot "
                "wait: make them first, with `ohem propose`"
            )


def _rows(data: DetectionSet, source: Source) -> Iterator[tuple[str, str, int]]:
    """Yields for each image of `source` its name in the data set, its id in the source, its index in the data set."""
    return zip(data.ids[source.indices], source.ids, range(*source.indices.indices(len(data))), strict=True)


class _Images(Mapping[str, Path]):
    """The images of a source by their ids in it: a path for each would take 400 bytes."""

    def __init__(self, data: DetectionSet, source: Source) -> None:
        self._data, self._first, self.ids = data, source.first, source.ids

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.ids)

    def __getitem__(self, stem: str) -> Path:
        return self.at(self._rows[stem])

    def at(self, row: int) -> Path:
        """Returns the image by its position in `ids`."""
        return self._data.path(self._first + row)

    def values(self) -> ValuesView[Path]:
        """Returns the paths, for which `_rows` are not made."""
        return _Paths(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class _Paths(ValuesView[Path]):
    def __init__(self, images: _Images) -> None:
        super().__init__(images)
        self._images = images

    def __iter__(self) -> Iterator[Path]:
        return map(self._images.at, range(len(self._images)))


class _Places(Mapping[str, Place]):
    """The places of images by their names in the data set, of which `files` has those of each source."""

    def __init__(self, data: DetectionSet, files: Sequence[Shards]) -> None:
        self._data, self._sources, self.files = data, data.sources, files
        self._rows = Rows(data.ids)

    def __getitem__(self, name: str) -> Place:
        index = self._rows[name]
        number = next(number for number, source in enumerate(self._sources) if index < source.indices.stop)
        source = self._sources[number]
        return self.files[number], source.ids[index - source.first], self._data.size(index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _check_places(data: DetectionSet, folder: str | None, method: Method) -> None:
    """Raises `InputError` where two sources would keep the proposals of different images in one file."""
    sources: dict[Path, Source] = {}
    for source in data.sources:
        path = _cache(source, folder, method)
        other = sources.setdefault(path, source)
        if other.folder.resolve() != source.folder.resolve():
            raise InputError(
                f"the proposals of {other} and of {source} would both be kept in {path}: leave out the folder of "
                "proposals, or rename one of the folders of images"
            )


def _cache(source: Source, folder: str | None, method: Method) -> Path:
    if folder is None:
        return cache_path(source.folder, source.name, method)
    return Path(folder) / f"{source.folder.resolve().name}.{cache_name(source.name, method)}"


class _Union(Mapping[str, Any]):
    """Boxes by image name: the union of the first `top` of all `parts`."""

    def __init__(self, parts: Sequence["_Cached"], top: int) -> None:
        self.parts, self.top = parts, top

    def hash_index(self, add: Callable[[bytes], object]) -> None:
        """Passes what identifies the boxes to `add`, without reading them."""
        add(str(self.top).encode())
        for part in self.parts:
            part.hash_index(add)

    def __getitem__(self, name: str) -> Any:
        return union_of([part[name][: self.top] for part in self.parts])

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts[0])

    def __len__(self) -> int:
        return len(self.parts[0])


class _Placed(Mapping[str, Any]):
    """Boxes by image name, read from the proposal files on access, since those of COCO are gigabytes."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places

    def __getitem__(self, name: str) -> Any:
        file, image_id, size = self.places[name]
        boxes = file[image_id]
        fault = fault_of_boxes(boxes, size)
        if fault:
            raise InputError(
                f"{file.path}: the boxes of {image_id}: {fault}: they belong to another image, or to another size "
                "of it: make them again"
            )
        return boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Cached(_Placed):
    """Boxes of one method."""

    places: _Places

    def hash_index(self, add: Callable[[bytes], object]) -> None:
        """Passes what identifies the boxes to `add`, without reading them."""
        for file in self.places.files:
            file.hash_index(add)


def check_ids(data: DetectionSet, other: DetectionSet, config: ProposalConfig) -> None:
    """Raises `InputError` where an image of `data` and another one of `other` have one id in the files of proposals."""
    kinds = {Path(file).suffix.lower() != ".mat" for file in config.files}
    images = {(kind, ids[kind]): data.path(index) for kind in kinds for _, ids, index in _ids(data)}
    for _, ids, index in _ids(other):
        for kind in kinds:
            image = images.get((kind, ids[kind]))
            if image is not None and not image.samefile(other.path(index)):
                raise _one_id(ids[kind], image, other.path(index))


def _one_id(image_id: str, one: Path, other: Path) -> InputError:
    return InputError(
        f"{one} and {other} have the same id {image_id} in the files of --proposals.files, which would give both the "
        "same boxes: rename or renumber one of them"
    )


def _ids(data: DetectionSet) -> Iterator[tuple[str, tuple[str, str], int]]:
    """Yields for each image its name in the data set, its ids in files by name and by number, its index."""
    for source in data.sources:
        numbers = source.image_ids if isinstance(source, COCOSource) else source.ids
        for (name, stem, index), number in zip(_rows(data, source), numbers, strict=True):
            yield name, (stem, str(number)), index


def _from_files(data: DetectionSet, paths: Sequence[str]) -> Mapping[str, Any]:
    files = [BoxFile(Path(path)) for path in paths]
    places: dict[str, Place] = {}
    images: dict[tuple[bool, str], Path] = {}
    missing = []
    for name, ids, index in _ids(data):
        having = [file for file in files if ids[file.by_number] in file]
        for file in having:
            image_id, image = ids[file.by_number], data.path(index)
            if (one := images.setdefault((file.by_number, image_id), image)) is not image:
                raise _one_id(image_id, one, image)
            first, first_id, _ = places.setdefault(name, (file, image_id, data.size(index)))
            if first is not file and not np.array_equal(first[first_id], file[image_id]):
                raise InputError(f"{file.path}: other boxes of {image_id} than in {first.path}: name only one of them")
        if not having:
            missing.append(ids[files[0].by_number])
    if missing:
        raise InputError(
            f"{', '.join(paths)} has no proposals of {len(missing)} images, the first is {missing[0]}: name the files "
            "of every data set with --proposals.files"
        )
    boxes = _Placed(places)
    for name in boxes:
        boxes[name]  # raises `InputError` if they are impossible
    return boxes
