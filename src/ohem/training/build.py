"""From a recipe to the things it describes: data, proposals, sampler, optimizer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ohem.data.dataset import DetectionSet, Source
from ohem.data.loader import Examples, Pictures
from ohem.data.sources import FORMS, open_dataset
from ohem.errors import InputError
from ohem.proposals.filtering import fault_of_boxes
from ohem.proposals.generate import cache_name, cache_path, generate, is_generated
from ohem.proposals.matlab import read_mats
from ohem.proposals.selective_search import Mode
from ohem.proposals.store import Proposals
from ohem.samplers import (
    AllSampler,
    HierarchicalSampler,
    IoUBalancedSampler,
    OHEMSampler,
    ProportionalSampler,
    RandomSampler,
    RankSampler,
    RatioSampler,
    RoISampler,
)
from ohem.training.config import DataConfig, ProposalConfig, Recipe, SamplerConfig, SolverConfig
from ohem.training.detectors import check_detector
from ohem.training.ranges import check_ranges


def check(recipe: Recipe) -> None:
    """Raises InputError where an option has a value that nothing can be done with."""
    check_ranges(recipe)
    check_detector(recipe)
    if recipe.model.rescored and recipe.model.implementation != "read_only":
        raise InputError("--model.rescored is of the read-only pass: leave it out, or --model.implementation")


def build_data(
    sources: Sequence[str],
    classes: Sequence[str],
    option: str,
    *,
    annotated: bool = True,
    skip_others: bool = False,
) -> DetectionSet:
    """The data set of `sources`; `classes` () takes the names found. `option` is what the remedy names.

    Unless `annotated`, images in VOC layout may be without an annotation file. `skip_others` is as for `DetectionSet`.
    """
    if not sources:
        raise InputError(f"no data set is given: name one with {option} {FORMS}")
    return open_dataset(sources, classes or None, annotated=annotated, skip_others=skip_others)


def check_objects(data: DetectionSet, sources: Sequence[str], remedy: str) -> None:
    """Raises InputError where `data`, of `sources`, has no object but such as are ignored."""
    names, objects = ", ".join(sources), data.objects()
    if not objects:
        if data.other_classes:
            wanted, there = (", ".join(map(repr, each)) for each in (data.classes, data.other_classes))
            raise InputError(f"{names} has no object of the classes {wanted}: give some of {there} with --data.classes")
        kinds = "no object" + (" but ones marked as difficult or as crowds, which are ignored" if _any(data) else "")
        raise InputError(f"{names} has {kinds}: {remedy}")


def _any(data: DetectionSet) -> bool:
    return any(len(data.target(i)["labels"]) for i in range(len(data)))


def build_proposals(data: DetectionSet, config: ProposalConfig) -> Mapping[str, Any]:
    """Image id -> (P, 4) boxes: selective search, cached per source and made where missing, or the given .mat files."""
    if config.files:
        return _from_mat(data, config.files)
    if config.mode == "none":
        return dict.fromkeys(data.ids, np.zeros((0, 4), np.float32))
    found: dict[str, tuple[Proposals, str, tuple[int, int]]] = {}
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
            found[name] = cached, stem, data.size(index)
    return _Cached(found)


def check_cached(data: DetectionSet, config: ProposalConfig) -> None:
    """Raises InputError where selective search has yet to be done: other processes would give up waiting."""
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
    """Per image of `source` its name in the data set, its id in the source, and its place in the data set."""
    return zip(data.ids[source.indices], source.ids, range(*source.indices.indices(len(data))), strict=True)


def _images(data: DetectionSet, source: Source) -> dict[str, Path]:
    return {stem: data.path(index) for _, stem, index in _rows(data, source)}


def _check_places(data: DetectionSet, folder: str | None, mode: Mode) -> None:
    """Raises InputError where two sources would keep the proposals of different images in one file."""
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
    """Boxes by the names of the images, read from the caches as they are asked for: those of COCO are gigabytes."""

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
        raise InputError(f"{where}: {fault}: they are of another picture, or of another size of it; make them again")


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


def build_examples(data: DetectionSet, proposals: Mapping[str, Any], recipe: Recipe) -> Examples:
    """Images with proposals at the scale of the recipe."""
    return Examples(data, proposals, short=recipe.data.short, long=recipe.data.long, top=recipe.proposals.top)


def sides_to_test(recipe: Recipe) -> tuple[tuple[int, ...], int]:
    """Short sides that the recipe tests at, and the highest long side."""
    return recipe.test.scales or (recipe.data.short,), recipe.test.long or recipe.data.long


def build_pictures(data: DetectionSet, proposals: Mapping[str, Any], recipe: Recipe) -> Pictures:
    """Images with proposals in the sizes that the recipe tests at."""
    shorts, long = sides_to_test(recipe)
    return Pictures(data, proposals, shorts=shorts, long=long, top=recipe.proposals.top)


def build_sampler(config: SamplerConfig) -> RoISampler:
    """The strategy that the recipe names."""
    size = config.batch_size
    nms_iou = config.nms_iou if config.nms_iou < 1 else None
    mined = partial(
        OHEMSampler,
        batch_size=size,
        nms_iou=nms_iou,
        per_image=config.per_image,
        suppress=config.suppress,
        inclusive=config.inclusive,
        classifier=config.classifier,
        box_reg=config.box_reg,
    )
    make: dict[str, Callable[[], RoISampler]] = {
        "all": AllSampler,
        "own": AllSampler,  # never asked
        "ratio": lambda: RatioSampler(config.negatives_per_positive, nms_iou=nms_iou),
        "random": lambda: RandomSampler(size, config.fg_fraction, bg_iou=(config.bg_lo, 0.5)),
        "iou_balanced": lambda: IoUBalancedSampler(size, config.fg_fraction),
        "ohem": mined,
        "separate": lambda: mined(fg_fraction=config.fg_fraction),
        "hierarchical": lambda: HierarchicalSampler(size, config.nms_iou, config.classifier, config.box_reg),
        "rank": lambda: RankSampler(size, config.pressure),
        "proportional": lambda: ProportionalSampler(size),
    }
    return make[config.name]()


def build_optimizer(model: nn.Module, config: SolverConfig, *, fused: bool) -> torch.optim.SGD:
    """SGD in which biases learn `bias_lr` times as fast and do not decay (the authors' prototxt)."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if not name.endswith("bias")], "factor": 1.0},
        {"params": [p for name, p in trained if name.endswith("bias")], "factor": config.bias_lr, "weight_decay": 0.0},
    ]
    decay = config.weight_decay
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=decay, fused=fused)


def learning_rate(config: SolverConfig, step: int) -> float:
    """Of weights at `step`: step decay, with a linear warm-up."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.lr * warm * config.gamma ** (step // config.decay_every)


def with_classes(recipe: Recipe, classes: Sequence[str]) -> Recipe:
    """The recipe with the class names that the training data gave; of given ones, others are skipped everywhere."""
    skip = recipe.data.skip_others or bool(recipe.data.classes)
    data: DataConfig = replace(recipe.data, classes=tuple(classes), skip_others=skip)
    return replace(recipe, data=data)
