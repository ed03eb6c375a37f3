"""The proposals of a data set: selective search, cached per source, or the .mat files of the original release."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.config.schema import ProposalConfig
from ohem.data.dataset import DetectionSet, Source
from ohem.errors import InputError
from ohem.proposals.boxes import fault_of_boxes
from ohem.proposals.generate import cache_name, cache_path, generate, is_generated
from ohem.proposals.matlab import read_mats
from ohem.proposals.selective_search import Mode
from ohem.proposals.store import Proposals


def build_proposals(data: DetectionSet, config: ProposalConfig) -> Mapping[str, Any]:
    """Returns image id -> (P, 4) boxes: from selective search, which runs where they are missing, or .mat files."""
    if config.files:
        return _from_mat(data, config.files)
    if config.mode == "none":
        return dict.fromkeys(data.ids, np.zeros((0, 4), np.float32))
    places: dict[str, tuple[Proposals, str, tuple[int, int]]] = {}
    _check_places(data, config.folder, config.mode)
    for source in data.sources:
        cached = generate(
            _images(data, source),
            _cache(source, config.folder, config.mode),
            mode=config.mode,
            seed=config.seed,
            jobs=config.jobs,
        )
        for name, stem, index in _rows(data, source):
            places[name] = cached, stem, data.size(index)
    return _Cached(places)


def check_cached(data: DetectionSet, config: ProposalConfig) -> None:
    """Raises `InputError` where proposals are missing: other processes would not wait long enough."""
    if config.files or config.mode == "none":
        return
    for source in data.sources:
        path = _cache(source, config.folder, config.mode)
        if not is_generated(_images(data, source), path, config.mode, config.seed):
            raise InputError(
                f"{source.folder} has no proposals yet, or not of all its images, for which several processes cannot "
                "wait: make them first, with `ohem propose`"
            )


def _rows(data: DetectionSet, source: Source) -> Iterator[tuple[str, str, int]]:
    """Yields for each image of `source` its name in the data set, its id in the source, its index in the data set."""
    return zip(data.ids[source.indices], source.ids, range(*source.indices.indices(len(data))), strict=True)


def _images(data: DetectionSet, source: Source) -> dict[str, Path]:
    return {stem: data.path(index) for _, stem, index in _rows(data, source)}


def _check_places(data: DetectionSet, folder: str | None, mode: Mode) -> None:
    """Raises `InputError` where two sources would keep the proposals of different images in one file."""
    sources: dict[Path, Source] = {}
    for source in data.sources:
        path = _cache(source, folder, mode)
        other = sources.setdefault(path, source)
        if other.folder.resolve() != source.folder.resolve():
            raise InputError(
                f"the proposals of {other} and of {source} would both be kept in {path}: leave out the folder of "
                "proposals, or rename one of the folders of images"
            )


def _cache(source: Source, folder: str | None, mode: Mode) -> Path:
    if folder is None:
        return cache_path(source.folder, source.name, mode)
    return Path(folder) / f"{source.folder.resolve().name}.{cache_name(source.name, mode)}"


class _Cached(Mapping[str, Any]):
    """Boxes by image name, read from the proposal files on access, since those of COCO are gigabytes."""

    def __init__(self, places: Mapping[str, tuple[Proposals, str, tuple[int, int]]]) -> None:
        self.places = places

    def __getitem__(self, name: str) -> Any:
        cache, stem, size = self.places[name]
        boxes = cache[stem]
        _check_boxes(boxes, size, f"{cache.path}: the boxes of {stem}")
        return boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _check_boxes(boxes: NDArray[np.float32], size: tuple[int, int], where: str) -> None:
    fault = fault_of_boxes(boxes, size)
    if fault:
        raise InputError(f"{where}: {fault}: they belong to another image, or to another size of it: make them again")


def _from_mat(data: DetectionSet, files: Sequence[str]) -> Mapping[str, Any]:
    boxes = read_mats([Path(file) for file in files])
    rows = [row for source in data.sources for row in _rows(data, source)]
    missing = [stem for _, stem, _ in rows if stem not in boxes]
    if missing:
        raise InputError(
            f"{', '.join(files)} has no proposals of {len(missing)} images, the first is {missing[0]}: "
            "name the .mat files of every split with --proposals.files"
        )
    for _, stem, index in rows:
        _check_boxes(boxes[stem], data.size(index), f"{', '.join(files)}: the boxes of {stem}")
    return {name: boxes[stem] for name, stem, _ in rows}
