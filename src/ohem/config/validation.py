"""Checks of the values in a recipe."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ohem.config.schema import BACKBONES_OF, ModelConfig, ProposalConfig, Recipe
from ohem.errors import InputError

SHARES = (
    "model.dropout", "model.rpn_score_thresh", "sampler.fg_fraction", "sampler.nms_iou", "sampler.confidence",
    "sampler.far", "solver.gamma", "solver.momentum", "test.score", "test.nms_iou", "test.rescore_score",
    "test.first_nms_iou", "test.vote_iou",
)  # fmt: skip
AT_LEAST_1 = (
    "model.rpn_batch_size", "data.short", "data.long", "data.scales", "proposals.top", "sampler.batch_size",
    "sampler.pressure", "solver.steps", "solver.decay_every", "solver.images", "test.scales", "test.long",
    "test.iterations", "test.first_top", "test.max_detections", "run.log_every", "run.checkpoint_every",
)  # fmt: skip
AT_LEAST_0 = (
    "model.box_region", "model.rescore_top", "model.shortlist", "data.workers", "proposals.width",
    "sampler.cls_weight", "sampler.box_weight", "sampler.negatives_per_positive", "sampler.warmup",
    "solver.lr", "solver.weight_decay", "solver.bias_lr", "solver.warmup", "solver.clip", "run.snapshot_every",
    "run.loss_every", "run.pictures_every",
)  # fmt: skip
HIGHEST = sys.float_info.max
"""Options must be finite."""
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(AT_LEAST_1, (1, HIGHEST)),
    **dict.fromkeys(AT_LEAST_0, (0, HIGHEST)),
    "sampler.bg_lo": (0, 0.5),
    "solver.seed": (0, 2**63 - 1),
    "proposals.seed": (0, 2**32 - 2),  # OpenCV takes 32 bits, of which 0 is the same as 1
    "proposals.jobs": (-1, HIGHEST),
    "proposals.windows": (1, 1_000_000),  # the memory of a step is proportional to them
    "test.vote_added": (-HIGHEST, HIGHEST),
}


def check_recipe(recipe: Recipe) -> None:
    """Raises `InputError` if an option has an impossible value, or if options contradict each other."""
    check_ranges(recipe)
    check_methods(recipe.proposals)
    _check_detector(recipe)
    _check_regions(recipe)
    if recipe.model.pooling == "pyramid" and recipe.model.backbone == "resnet50":
        raise InputError(
            "--model.pooling pyramid is for a RoI head that begins with a fully connected layer, which "
            "--model.backbone resnet50 does not have: leave it out, or give another backbone"
        )
    if "sliding" in recipe.proposals.mode and recipe.proposals.files:
        raise InputError("--proposals.files and --proposals.mode sliding both give the RoIs: leave out one of them")
    _check_ranking(recipe)
    _check_pictures(recipe)


def _check_regions(recipe: Recipe) -> None:
    """Raises `InputError` if the regions are named twice, or an option needs regions that are missing."""
    model = recipe.model
    names = model.regions
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--model.regions has {twice} twice: leave one out")
    if "mr_cnn" in names and len(names) > 1:
        raise InputError("--model.regions mr_cnn is all regions: leave out the others")
    if not names and model.foreground_features:
        raise InputError("--model.foreground-features needs regions: add --model.regions mr_cnn, or leave it out")
    if not names and model.box_region != ModelConfig.box_region:
        raise InputError(f"--model.box-region {model.box_region} needs regions: add --model.regions mr_cnn")


def check_methods(proposals: ProposalConfig, prefix: str = "--proposals.") -> None:
    """Raises `InputError` if the methods of proposals cannot be used together.

    Args:
        proposals: the options.
        prefix: what the options of the command begin with.
    """
    option, modes = f"{prefix}mode", proposals.mode
    if not modes:
        raise InputError(f"{option} names no method: give one, such as fast, or none")
    twice = next((mode for mode in modes if modes.count(mode) > 1), None)
    if twice is not None:
        raise InputError(f"{option} has {twice} twice: leave one out")
    for alone in ("none", "sliding"):
        if alone in modes and len(modes) > 1:
            raise InputError(f"{option} {' '.join(modes)}: {alone} is used alone: leave out {alone}, or the others")
    if "edge-boxes" in modes and proposals.edge_model is None:
        raise InputError(f"{option} edge-boxes needs a model: name OpenCV's model.yml.gz with {prefix}edge-model")
    if "edge-boxes" not in modes and proposals.edge_model is not None:
        raise InputError(f"{prefix}edge-model is for {option} edge-boxes: add the method, or leave out the model")


def _check_ranking(recipe: Recipe) -> None:
    """Raises `InputError` if options of the ranking do not fit."""
    model, size = recipe.model, recipe.sampler.batch_size or 1
    for option, given in (("rescore-top", model.rescore_top), ("shortlist", model.shortlist)):
        if given and model.implementation != "read_only":
            raise InputError(
                f"--model.{option} needs the read-only pass: leave out --model.implementation, or --model.{option}"
            )
    if 0 < model.shortlist < size:
        raise InputError(
            f"--model.shortlist {model.shortlist} is fewer RoIs than the {size} of --sampler.batch-size: give more"
        )


def _check_pictures(recipe: Recipe) -> None:
    """Raises `InputError` if pictures of the hardest RoIs are wanted, and cannot be made or kept."""
    if recipe.run.pictures_every and recipe.sampler.name == "builtin":
        raise InputError(
            "--run.pictures-every draws mined RoIs, and --sampler.name builtin mines none: leave out the pictures"
        )
    if recipe.run.pictures_every and set(recipe.run.loggers) <= {"csv"}:
        raise InputError("--run.pictures-every needs a logger that keeps pictures: add --run.loggers tensorboard")


def check_ranges(settings: Any, group: str = "") -> None:
    """Raises `InputError` if a number is out of range.

    Args:
        settings: a `Recipe`, or one of its groups.
        group: the name of that group with a dot, "proposals.", which the options of the command do not have.
    """
    for key, value in flatten_options(settings, group):
        if key not in RANGES:
            continue
        low, high = RANGES[key]
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                option = key.removeprefix(group).replace("_", "-")
                raise InputError(f"--{option} {number} is out of range: give {_limits(low, high)}")


def _limits(low: float, high: float) -> str:
    if high < HIGHEST:
        return f"{low} to {high}"
    return f"{low} or more" if low > -HIGHEST else "a finite number"


def flatten_options(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the options of a recipe, or of one of its groups, with their dotted names: "solver.lr", 0.001."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from flatten_options(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _check_detector(recipe: Recipe) -> None:
    """Raises `InputError` if options do not fit the detector."""
    model, name = recipe.model, f"--model.detector {recipe.model.detector}"
    if model.backbone not in BACKBONES_OF[model.detector]:
        known = " or ".join(BACKBONES_OF[model.detector])
        raise InputError(f"--model.backbone {model.backbone} does not fit {name}: give {known}")
    _check_rpn(recipe)
    if model.detector == "fast_rcnn":
        _check_selection(recipe)
        if recipe.sampler.name == "builtin":
            raise InputError(
                f"--sampler.name builtin is for torchvision's detectors, not for {name}: give another sampler"
            )
        if "none" in recipe.proposals.mode:
            raise InputError(f"--proposals.mode none leaves {name} without RoIs: give another, such as fast")
        return
    for option, given in _of_fast_rcnn(recipe).items():
        if given:
            raise InputError(f"--{option} is not for {name} of torchvision: leave it out, or give another detector")
    if "none" not in recipe.proposals.mode:
        raise InputError(f"{name} makes its own proposals: add --proposals.mode none")
    file = next((place for place in recipe.data.negatives if is_region_file(place)), None)
    if file is not None:
        raise InputError(
            f"{name} makes its own proposals, and does not take the regions of {file}: give --data.negatives "
            "the folder regions/ next to it, whose images show these regions alone"
        )
    if model.detector == "ssdlite" and (recipe.solver.images < 2 or recipe.solver.accumulate):
        raise InputError(
            f"the batch norm of {name} needs several images: give --solver.images 2 or more, not accumulated"
        )


def _check_selection(recipe: Recipe) -> None:
    """Raises `InputError` if options of the selection over the whole mini-batch do not fit."""
    data, solver = recipe.data, recipe.solver
    if data.pyramid and len(data.scales) < 2:
        raise InputError("--data.pyramid needs several sizes: name two or more short sides with --data.scales")
    if solver.rank_first and not solver.accumulate:
        raise InputError("--solver.rank-first is for --solver.accumulate: without it, all RoIs are ranked together")
    if data.pyramid and solver.accumulate and not solver.rank_first:
        raise InputError("--data.pyramid with --solver.accumulate needs --solver.rank-first: add it")
    option = "--data.pyramid" if data.pyramid else "--solver.rank-first"
    if recipe.model.shortlist and (data.pyramid or solver.rank_first):
        raise InputError(f"{option} ranks all RoIs, and --model.shortlist does not: leave one of them out")


def is_region_file(place: str) -> bool:
    """Returns whether `place`, of `--data.negatives`, is a file of regions, by its suffix."""
    return place.lower().endswith(".json")


def _check_rpn(recipe: Recipe) -> None:
    """Raises `InputError` if options of the region proposal network are given to a detector that has none."""
    model = recipe.model
    for option in ("rpn_sampler", "rpn_batch_size", "rpn_score_thresh"):
        if model.detector != "faster_rcnn" and getattr(model, option) is not None:
            raise InputError(
                f"--model.{option.replace('_', '-')} is for a detector with a region proposal network, which "
                f"--model.detector {model.detector} does not have: leave it out, or give --model.detector faster_rcnn"
            )


def _of_fast_rcnn(recipe: Recipe) -> dict[str, bool]:
    """Returns the options that only our own detector has, and whether they are set."""
    return {
        "model.implementation": recipe.model.implementation != "read_only",
        "model.frozen": recipe.model.frozen != "first",
        "model.pooling": recipe.model.pooling != "roi",
        "model.regions": bool(recipe.model.regions),
        "model.rescore_top": recipe.model.rescore_top != 0,
        "model.shortlist": recipe.model.shortlist != 0,
        "model.box-normalisation": recipe.model.box_normalisation != "fixed",
        "proposals.files": bool(recipe.proposals.files),
        "data.scales": bool(recipe.data.scales),
        "solver.rank-first": recipe.solver.rank_first,
        "test.scales": bool(recipe.test.scales),
        "test.iterations": recipe.test.iterations > 1,
        "test.voting": recipe.test.voting,
        "run.loss-every": recipe.run.loss_every > 0,
    }
