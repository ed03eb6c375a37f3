"""Time to accuracy: the seconds and steps of training after which a method first has a given mAP. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple


class CurvePoint(NamedTuple):
    """A point of a curve of mAP.

    `seconds` are those of the training steps up to `step`. Reading images, evaluating and interruptions do not count.
    """

    step: float
    seconds: float
    map: float


START = CurvePoint(0.0, 0.0, 0.0)
"""Where every curve begins."""


@dataclass(frozen=True)
class TimeToMap:
    """When a method first has the final mAP of a base.

    Args:
        target: final mAP of the base, mean over its seeds.
        reached: see `first_reached`; None if the mAP stays below `target`.
        share: seconds of `reached`, divided by the seconds of the whole training of the base.
        of_seeds: the same as `reached`, for the curve of each seed.
    """

    target: float
    reached: CurvePoint | None
    share: float | None
    of_seeds: Sequence[CurvePoint | None]


def seconds_until(step: int, rows: Sequence[tuple[int, float]]) -> float:
    """Computes the sum of the seconds of the training steps up to `step`.

    Args:
        step: number of steps. Steps after the last row are left out.
        rows: pairs (step, mean seconds of the steps since the row before), first step first, as in metrics.csv.
    """
    total, before = 0.0, 0
    for end, mean in rows:
        total += mean * max(0, min(end, step) - before)
        before = end
    return total


def mean_curve(curves: Sequence[Sequence[CurvePoint]]) -> list[CurvePoint]:
    """Returns the mean seconds and the mean mAP of the curves of some seeds, at the steps that all of them have."""
    of_steps = [{point.step: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in of_steps))) if of_steps else []
    at = [[points[step] for points in of_steps] for step in shared]
    return [CurvePoint(points[0].step, fmean(p.seconds for p in points), fmean(p.map for p in points)) for points in at]


def first_reached(curve: Sequence[CurvePoint], target: float) -> CurvePoint | None:
    """Returns where a curve first has the mAP `target`, or None if it stays below.

    The curve is linear between its points, and begins with an mAP of 0 at step 0.
    """
    if target <= START.map:
        return START
    for before, after in pairwise([START, *curve]):
        if after.map >= target:
            share = (target - before.map) / (after.map - before.map)
            return CurvePoint(*(low + share * (high - low) for low, high in zip(before, after, strict=True)))
    return None


def time_to_map(
    curves: Sequence[Sequence[CurvePoint]], base: Sequence[Sequence[CurvePoint]], target: float
) -> TimeToMap | None:
    """Computes when a method first has the mAP `target`: where the mean curve of its seeds first has it.

    Args:
        curves: the points of each seed of the method, first step first.
        base: those of the base, whose last points are at the end of its training.
        target: final mAP of the base, mean over its seeds.

    Returns:
        The time; None if the method has no curve: its seeds share fewer than two steps.
    """
    mean, mean_of_base = mean_curve(curves), mean_curve(base)
    if len(mean) < 2 or not mean_of_base:
        return None
    reached, total = first_reached(mean, target), mean_of_base[-1].seconds
    share = reached.seconds / total if reached and total else None
    return TimeToMap(target, reached, share, [first_reached(curve, target) for curve in curves])
