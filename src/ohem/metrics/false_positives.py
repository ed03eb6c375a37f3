"""False positives per image at a recall: what hard negatives are mined for (one point of the FROC curve).

D: detections of all images   G: ground-truth boxes of all images
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ohem.checks import check_integer, check_share
from ohem.metrics.matching import classify_detections, match_all

RECALL = 0.8
"""Recall at which `ohem eval` counts false positives."""


def false_positives_per_image(
    predictions: Iterable[Mapping[str, Any]],
    targets: Iterable[Mapping[str, Any]],
    recall: float = RECALL,
    iou: float = 0.5,
    *,
    classes: int,
) -> float:
    """Counts the false positives per image at the highest score threshold, the same for all classes, with this recall.

    A detection is a true positive as in `voc.evaluate`: it has the best score of those that are matched to a box of
    its class. The others are false positives, except those that are matched to an ignored box.

    Args:
        predictions, targets: as for `voc.evaluate`.
        recall: share of all objects, which are not ignored, that must be detected; above 0, at most 1.
        iou: a detection is correct if its IoU with a box is strictly above this.
        classes: number of classes.

    Returns:
        The number of false positives divided by the number of images. It is infinite if all detections together have a
        lower recall, and NaN if there is no object.

    Raises:
        ValueError: as `voc.evaluate` does, or a number is out of range.
    """
    check_share("recall", recall)
    check_share("iou", iou)
    check_integer("classes", classes)
    matches, _, ignore, images = match_all(predictions, targets, classes)
    objects = int(np.count_nonzero(~ignore))
    if not objects:
        return float("nan")
    order = np.argsort(-matches.scores, kind="stable")
    right, wrong = classify_detections(matches, order, ignore, iou)
    enough = np.flatnonzero(np.cumsum(right) >= recall * objects - 1e-9)  # 0.8 * 5 is 4 objects, whatever the rounding
    if not len(enough):
        return float("inf")
    # Detections of the same score are above the threshold together.
    scores = matches.scores[order]
    last = np.searchsorted(-scores, -scores[enough[0]], side="right") - 1
    return float(np.cumsum(wrong)[last]) / images
