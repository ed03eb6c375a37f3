"""False positives: those per image at a recall (one point of the FROC curve), and those that are background.

D: detections of all images   G: ground-truth boxes of all images
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ohem.checks import check_integer, check_share
from ohem.metrics.inputs import pairs
from ohem.metrics.matching import classify_detections, match_all, overlaps

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


def background_shares(
    predictions: Iterable[Mapping[str, Any]],
    targets: Iterable[Mapping[str, Any]],
    iou: float = 0.5,
    background_iou: float = 0.1,
    *,
    classes: int,
) -> list[float]:
    """Computes how much background is taken for each class.

    Of the n best detections of a class that has n objects, which are all true positives of a perfect detector, it is
    the share of false positives that overlap no object, of any class. Ignored objects do not count among the n, and a
    detection of one is no false positive.

    Args:
        predictions, targets: as for `voc.evaluate`.
        iou: a detection is correct if its IoU with a box is strictly above this.
        background_iou: highest IoU of the background with an object; TIDE's (Bolya et al., ECCV 2020).
        classes: number of classes.

    Returns:
        The share of each class 1..K, 0 to 1; NaN for a class without objects. If there are fewer detections than
        objects, it is the share of n all the same.

    Raises:
        ValueError: as `voc.evaluate` does, or a number is out of range.
    """
    check_share("iou", iou)
    check_share("background_iou", background_iou)
    check_integer("classes", classes)
    predictions, targets = list(predictions), list(targets)
    matches, labels, ignore, _ = match_all(predictions, targets, classes)
    shared = (
        overlaps(prediction.boxes, target.boxes).max(axis=1, initial=0)
        for prediction, target in pairs(predictions, targets, classes)
    )
    is_background = np.concatenate([np.zeros(0), *shared]) <= background_iou
    shares = []
    for label in range(1, classes + 1):
        objects = int(np.count_nonzero(~ignore & (labels == label)))
        detected = np.flatnonzero(matches.labels == label)
        order = detected[np.argsort(-matches.scores[detected], kind="stable")]
        _, wrong = classify_detections(matches, order, ignore, iou)
        count = np.count_nonzero((wrong & is_background[order])[:objects])
        shares.append(count / objects if objects else float("nan"))
    return shares
