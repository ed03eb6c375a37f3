"""What the options that are numbers may be, by their names in the recipe."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ohem.errors import InputError

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
    "model.rescored", "data.workers", "sampler.classifier", "sampler.box_reg", "sampler.negatives_per_positive",
    "solver.lr", "solver.weight_decay", "solver.bias_lr", "solver.warmup", "solver.clip", "run.snapshot_every",
    "run.loss_every",
)  # fmt: skip
HIGHEST = sys.float_info.max
"""No option is infinite."""
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(AT_LEAST_1, (1, HIGHEST)),
    **dict.fromkeys(AT_LEAST_0, (0, HIGHEST)),
    "sampler.bg_lo": (0, 0.5),
    "solver.seed": (0, 2**63 - 1),
    "proposals.seed": (0, 2**32 - 2),  # OpenCV takes 32 bits, of which 0 is the same as 1
    "proposals.jobs": (-1, HIGHEST),
    "test.vote_added": (-HIGHEST, HIGHEST),
}


def check_ranges(settings: Any, group: str = "") -> None:
    """Raises InputError where a number is out of range.

    Args:
        settings: a `Recipe`; or one of its groups, which a command takes without the name of the group.
        group: that name with a dot, "proposals.".
    """
    for key, value in flat(asdict(settings), group):
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


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of nested settings by their dotted names: `solver.lr`, 0.001."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
