"""Average precision as the PASCAL VOC devkit computes it: the metric of all VOC tables of the paper.

D: detections of an image   G: ground-truth boxes of an image   K: classes, labelled 1..K
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ohem.checks import check_choice, check_sequence, check_share
from ohem.metrics.inputs import Bools, Floats
from ohem.metrics.matching import Matches, classify_detections, match_all

Metric = Literal["voc07", "voc10"]


@dataclass(frozen=True)
class VOCResult:
    """Scores of a data set: AP and mAP in percent, the curves as fractions.

    A class without ground truth has `npos` 0, and NaN as AP and recall. It does not count in `map`; `map` is NaN if no
    class has ground truth. `recall[name]` and `precision[name]` have one entry per detection of the class, in the order
    of decreasing score.
    """

    map: float
    ap: dict[str, float]
    npos: dict[str, int]
    recall: dict[str, Floats]
    precision: dict[str, Floats]
    images: int
    metric: Metric
    iou: float


def evaluate(
    predictions: Iterable[Mapping[str, Any]],
    targets: Iterable[Mapping[str, Any]],
    iou: float = 0.5,
    metric: Metric = "voc07",
    *,
    classes: Sequence[str],
) -> VOCResult:
    """Scores detections against ground truth, class by class, as the devkit does.

    Args:
        predictions: mapping of boxes `[D, 4]`, scores `[D]` and labels `[D]` for each image, tensors or arrays.
        targets: mapping of boxes `[G, 4]`, labels `[G]` and ignore `[G]` (default: none is ignored) for each image, in
            the same order. A detection that is matched to a box with `ignore` (VOC's `difficult`) is neither a true nor
            a false positive.
        iou: a detection is correct if its IoU with a box is strictly above this.
        metric: "voc07" is the mean at 11 points, "voc10" the area under the monotone curve.
        classes: names of the labels 1..K.

    Raises:
        ValueError: predictions and targets differ in number, an image's fields differ in length, a label is not in
            1..K, a score is NaN, or the metric is unknown.
    """
    check_share("iou", iou)
    check_choice("metric", metric, get_args(Metric))
    check_sequence("classes", classes, "names")
    matches, labels, ignore, images = match_all(predictions, targets, len(classes))
    ap, npos, recall, precision = {}, {}, {}, {}
    for label, name in enumerate(classes, start=1):
        of_class = Matches(*(field[matches.labels == label] for field in matches))
        npos[name] = int(np.count_nonzero((labels == label) & ~ignore))
        recall[name], precision[name] = _curve(of_class, ignore, npos[name], iou)
        ap[name] = 100 * average_precision(recall[name], precision[name], metric) if npos[name] else float("nan")
    known = [value for name, value in ap.items() if npos[name]]
    mean = float(np.mean(known)) if known else float("nan")
    return VOCResult(mean, ap, npos, recall, precision, images, metric, iou)


def average_precision(recall: npt.ArrayLike, precision: npt.ArrayLike, metric: Metric = "voc07") -> float:
    """Computes the AP in [0, 1] of recall and precision `[D]`, best score first. A precision of NaN counts as 0."""
    recall, precision = np.asarray(recall, np.float64), np.nan_to_num(np.asarray(precision, np.float64))
    if metric == "voc07":
        # The steps of the devkit, with their rounding: a recall of 3/10 is below the fourth, 0.30000000000000004.
        steps = np.arange(0.0, 1.1, 0.1)
        return float(np.mean([precision[recall >= step].max(initial=0.0) for step in steps]))
    if metric == "voc10":
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    raise ValueError(f'the metric {metric!r} is unknown: choose "voc07" or "voc10"')


def _curve(matches: Matches, ignore: Bools, npos: int, iou: float) -> tuple[Floats, Floats]:
    """Returns recall and precision `[D]` of one class."""
    order = np.argsort(-matches.scores, kind="stable")
    right, wrong = classify_detections(matches, order, ignore, iou)
    true, false = np.cumsum(right), np.cumsum(wrong)
    recall = true / npos if npos else np.full(len(order), np.nan)
    return recall, true / np.maximum(true + false, 1)
