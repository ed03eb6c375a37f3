"""What the options that are numbers may be, by their names in the recipe."""

import math
from collections.abc import Mapping
from dataclasses import asdict

from ohem.errors import InputError
from ohem.training.config import Recipe
from ohem.training.runs import flat

SHARES = (
    "model.dropout", "sampler.fg_fraction", "sampler.nms_iou", "solver.gamma", "solver.momentum",
    "test.score", "test.nms_iou", "test.rescore_score", "test.first_nms_iou", "test.vote_iou",
)  # fmt: skip
AT_LEAST_1 = (
    "data.short", "data.long", "data.scales", "proposals.top", "sampler.batch_size", "sampler.pressure",
    "solver.steps", "solver.decay_every", "solver.images", "test.scales", "test.long", "test.iterations",
    "test.first_top", "test.max_detections", "run.log_every", "run.checkpoint_every",
)  # fmt: skip
AT_LEAST_0 = (
    "model.rescored", "data.workers", "proposals.seed", "sampler.classifier", "sampler.box_reg",
    "sampler.negatives_per_positive", "solver.lr", "solver.weight_decay", "solver.bias_lr", "solver.warmup",
    "solver.clip", "solver.seed", "run.snapshot_every", "run.loss_every",
)  # fmt: skip
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(AT_LEAST_1, (1, math.inf)),
    **dict.fromkeys(AT_LEAST_0, (0, math.inf)),
    "sampler.bg_lo": (0, 0.5),
}


def check_ranges(recipe: Recipe) -> None:
    """Raises InputError where a number is out of range."""
    for key, value in flat(asdict(recipe)):
        if key not in RANGES:
            continue
        low, high = RANGES[key]
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                limits = f"{low} to {high}" if high < math.inf else f"{low} or more"
                raise InputError(f"--{key.replace('_', '-')} {number} is out of range: give {limits}")
