"""What is known of each class: its objects, what is mined of it, and what it gains."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from ohem.data.dataset import DetectionSet
from ohem.experiments.results import RunResult
from ohem.experiments.significance import Correlation, Difference, Mean, mean_of, paired, rank_correlation
from ohem.mining_log.tables import read_tables

USER = "ohem reproduce categories"
"""Command that reads the mining logs, for messages."""


@dataclass(frozen=True)
class Category:
    """A class. Values over several seeds are means; None is not known."""

    name: str
    objects: int
    """Number of its training objects that are not ignored."""
    size: float | None
    """Median side of its training objects, the root of their area, in percent of that of their image."""
    background: float | None
    """Share of background among the best detections of the baseline, in percent; see `background_shares`."""
    mined: float | None
    """Share of its foreground RoIs among all RoIs that OHEM chose, in percent."""
    taken_for: float | None
    """Share of the background RoIs in OHEM's mining log that were most probably of this class, in percent."""
    base_ap: Mean | None
    ap: Mean | None
    gain: Difference | None
    """AP of OHEM minus AP of the baseline, seed by seed."""


PROPERTIES: Mapping[str, tuple[str, Callable[[Category], float | None]]] = {
    "objects": ("training objects", lambda category: category.objects),
    "size": ("median size, % of the image's side", lambda category: category.size),
    "background": ("background among the best detections of FRCN, %", lambda category: category.background),
    "mined": ("foreground of the class in what OHEM mines, %", lambda category: category.mined),
    "taken_for": ("mined background that is taken for the class, %", lambda category: category.taken_for),
    "base_ap": ("AP of FRCN", lambda category: category.base_ap.mean if category.base_ap else None),
}
"""What may explain a gain: name, label, value of a class."""


def describe_categories(
    train: DetectionSet, base: Sequence[RunResult], ohem: Sequence[RunResult], runs: Sequence[Path]
) -> list[Category]:
    """Describes each class of the training data.

    Args:
        train: the training data.
        base: results of the baseline, one for each seed.
        ohem: results of OHEM with the same seeds; both may be empty, if a server computes the results.
        runs: folders of the runs of OHEM, for their mining logs.

    Raises:
        InputError: pyarrow is missing, or a mining log is damaged.
    """
    sizes = _sizes(train)
    logs = [shares for run in runs if (shares := _mined_shares(run, len(train.classes))) is not None]
    result = []
    for label, name in enumerate(train.classes, start=1):
        before, after = _known_ap(name, base), _known_ap(name, ohem)
        category = Category(
            name,
            objects=len(sizes[label]),
            size=float(np.median(sizes[label])) if sizes[label] else None,
            background=_percent([run.background.get(name) for run in base]),
            mined=_percent([mined[label] for mined, _ in logs]),
            taken_for=_percent([taken[label] for _, taken in logs]),
            base_ap=mean_of(before) if before else None,
            ap=mean_of(after) if after else None,
            gain=paired(after, before) if before and after else None,
        )
        result.append(category)
    return result


def correlations(categories: Sequence[Category]) -> dict[str, Correlation | None]:
    """Correlates the gain with each of `PROPERTIES` over the classes for which both are known."""
    result = {}
    for key, (_, value) in PROPERTIES.items():
        pairs = [(number, one.gain.mean) for one in categories if one.gain and (number := value(one)) is not None]
        result[key] = rank_correlation([number for number, _ in pairs], [gain for _, gain in pairs])
    return result


def _known_ap(name: str, runs: Sequence[RunResult]) -> list[float] | None:
    """Returns the AP of each run; None if there is no test object, or a server computes the results."""
    values = [value for run in runs if (value := run.ap.get(name)) is not None]
    return values if values and len(values) == len(runs) else None


def _sizes(data: DetectionSet) -> list[list[float]]:
    """Returns the sizes of the objects of each label 0..K."""
    sizes: list[list[float]] = [[] for _ in range(len(data.classes) + 1)]
    for index in range(len(data)):
        target, (height, width) = data.target(index), data.size(index)
        x1, y1, x2, y2 = target["boxes"].double().unbind(1)
        sides = 100 * ((x2 - x1) * (y2 - y1) / (height * width)).sqrt()
        for label, side, ignored in zip(target["labels"].tolist(), sides.tolist(), target["ignore"], strict=True):
            if not ignored:
                sizes[label].append(side)
    return sizes


def _mined_shares(run: Path, classes: int) -> tuple[list[float], list[float]] | None:
    """Returns, for each label 0..K, its share of all chosen RoIs, and of what background of the log was taken for.

    None if the run has no mining log.
    """
    tables = read_tables(run, USER, ("rows", "periods"))
    if tables is None:
        return None
    chosen = np.zeros(classes + 1, np.float64)
    for labels in tables["periods"]["labels"]:
        chosen[: len(labels)] += labels
    rows = tables["rows"]
    taken = [wrong for label, wrong in zip(rows["label"], rows["taken_for"], strict=True) if label == 0 and wrong > 0]
    return _shares(chosen), _shares(np.bincount(np.array(taken, np.int64), minlength=classes + 1).astype(np.float64))


def _shares(counts: NDArray[np.float64]) -> list[float]:
    total = counts.sum()
    return [float(count / total) if total else math.nan for count in counts]


def _percent(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None and not math.isnan(share)]
    return 100 * fmean(known) if known else None
