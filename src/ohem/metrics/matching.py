"""Detections matched with ground-truth boxes, as the PASCAL VOC devkit matches them.

D: detections of an image   G: ground-truth boxes of an image
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ohem.metrics.inputs import Bools, Floats, Ints, pairs


class Matches(NamedTuple):
    """Detections, each with the ground-truth box of the same class that it overlaps most."""

    scores: Floats
    labels: Ints
    overlaps: Floats  # 0 if the image has no box of the class
    boxes: Ints  # index into all ground-truth boxes; has no meaning if the overlap is 0


def classify_detections(matches: Matches, order: Ints, ignore: Bools, iou: float) -> tuple[Bools, Bools]:
    """Returns which detections, taken in `order` [D], are true and which are false positives, (D,) bool each.

    A detection that is matched to an ignored box is neither. Of several that are matched to a box, the first is true.
    """
    hit, box = matches.overlaps[order] > iou, matches.boxes[order]
    ignored = hit.copy()
    ignored[hit] = ignore[box[hit]]
    right = np.zeros(len(order), dtype=bool)
    claims = np.flatnonzero(hit & ~ignored)
    right[claims[np.unique(box[claims], return_index=True)[1]]] = True
    return right, ~right & ~ignored


def match_all(
    predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], classes: int
) -> tuple[Matches, Ints, Bools, int]:
    """Returns all matched detections, label and ignore of all ground-truth boxes, and the number of images."""
    matches = [Matches(np.zeros(0), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))]
    labels, ignores, first, images = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)], 0, 0
    for prediction, target in pairs(predictions, targets, classes):
        overlaps, best = _best_overlap(prediction.boxes, prediction.labels, target.boxes, target.labels)
        matches.append(Matches(prediction.scores, prediction.labels, overlaps, best + first))
        labels.append(target.labels)
        ignores.append(target.ignore)
        first += len(target.labels)
        images += 1
    return (
        Matches(*map(np.concatenate, zip(*matches, strict=True))),
        np.concatenate(labels),
        np.concatenate(ignores),
        images,
    )


def _best_overlap(boxes: Floats, labels: Ints, true_boxes: Floats, true_labels: Ints) -> tuple[Floats, Ints]:
    """Returns the highest IoU `[D]` of each detection with a box of its class, and the index `[D]` of that box."""
    if not len(true_boxes):
        return np.zeros(len(boxes)), np.zeros(len(boxes), np.int64)
    iou = overlaps(boxes, true_boxes)
    iou[labels[:, None] != true_labels[None]] = 0
    best = iou.argmax(axis=1)
    return np.take_along_axis(iou, best[:, None], axis=1)[:, 0], best


def overlaps(boxes: Floats, true_boxes: Floats, *, of_first: bool = False) -> Floats:
    """Returns the IoU `[D, G]` of boxes `[D, 4]` and `[G, 4]`; with `of_first`, the shared part of the first box."""
    corner1 = np.maximum(boxes[:, None, :2], true_boxes[None, :, :2])
    corner2 = np.minimum(boxes[:, None, 2:], true_boxes[None, :, 2:])
    shared = (corner2 - corner1).clip(min=0).prod(axis=-1)
    area, true_area = ((b[:, 2:] - b[:, :2]).clip(min=0).prod(axis=-1) for b in (boxes, true_boxes))
    whole = np.broadcast_to(area[:, None], shared.shape) if of_first else area[:, None] + true_area[None] - shared
    result: Floats = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return result
