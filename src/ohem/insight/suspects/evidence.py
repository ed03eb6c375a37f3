"""Evidence for and against each annotation, from detections that did not see it.

Shapes: G: given boxes of an image   D: detections of an image   K: classes, labelled 1..K

The scores of detections are first turned into chances `q` that a detection is right, by a logistic function for each
class that is fitted to the data: so any detector's scores can be used, and a class that the detector knows badly
weighs less (as the thresholds of confident learning do).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ohem.metrics.inputs import Bools, Floats, Ints, Prediction, Truth

EPS = 1e-4
"""Chances are kept so far from 0 and 1."""
MATCHED = 0.5
"""IoU from which a detection counts as right."""
MOST = 50
"""Highest number of detections of an image that are judged as missing boxes."""
MISSING_NMS = 0.4
"""Of missing boxes that overlap with at least this IoU, whatever their classes, the likeliest stays."""
_PRIOR = 5.0
"""Weight of the prior of the logistic functions, in detections."""


class BoxEvidence(NamedTuple):
    """Evidence about the given boxes of an image; each field is (G,), chances are within 0 and 1."""

    agree: Floats
    """That the best detection of the same class around the box is right."""
    other: Floats
    """The same for the other classes."""
    near: Floats
    """The same for detections of the same class that overlap the box a little, and belong to no other given box."""
    seen: Floats
    """The same for any detection that touches the box."""
    other_detection: Ints
    """Index of the detection of `other`."""
    near_detection: Ints
    overlap: Floats
    """IoU with the detection of `agree`; 0 where there is none."""
    object: Floats
    """Chance that at least one of the detections on the box is right, of whatever class."""
    nearest: Floats
    """Highest IoU with any detection, whatever its score."""
    twin_iou: Floats
    """Highest IoU with a box of the same class that detections support at least as well; 0 where there is none."""
    twin: Ints
    """Index of that box."""


class DetectionEvidence(NamedTuple):
    """Evidence about some detections of an image as missing boxes, most likely first; each field is (M,)."""

    detection: Ints
    """Index of the detection."""
    object: Floats
    """Chance that at least one of the detections at this place is right, of whatever class."""
    explained: Floats
    """0 to 1, by the highest IoU with a given box."""
    inside: Floats
    """Highest share of the detection that lies in one given box."""
    moved: Floats
    """Chance that it is the right place of a given box."""
    ignored: Floats
    """0 to 1, by the share of the detection that lies in an ignored box."""


def ramp(values: Floats, low: float, high: float) -> Floats:
    """Returns 0 up to `low`, 1 from `high` on, and a line between them."""
    share: Floats = ((values - low) / (high - low)).clip(0.0, 1.0)
    return share


def logit(chance: Floats | float, least: float = EPS) -> Floats:
    """Returns the log odds of chances, which are clipped to `least` and 1 - `EPS`."""
    clipped = np.clip(chance, least, 1 - EPS)
    log_odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return log_odds


def sigmoid(log_odds: Floats) -> Floats:
    """Returns the chances of log odds."""
    return 1 / (1 + np.exp(-np.clip(log_odds, -50, 50)))


def iou_and_shared(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Returns the IoU (A, B) of boxes `a` (A, 4) and `b` (B, 4), and the areas (A, B) that they share."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(min=0).prod(axis=-1)
    union = _area(a)[:, None] + _area(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), shared


def chances(images: Sequence[tuple[Prediction, Truth]], classes: int) -> list[Floats]:
    """Returns for each image the chances (D,) that its detections are right.

    A detection is right in the sense of the fit if it overlaps a given box of its class; one on an ignored box is left
    out of it.
    """
    logits, labels, right = [], [], []
    for prediction, truth in images:
        hit, ignored = _hits(prediction, truth)
        logits.append(logit(prediction.scores[~ignored]))
        labels.append(prediction.labels[~ignored])
        right.append(hit[~ignored])
    x, label, y = (
        np.concatenate(parts).astype(np.float64) if parts else np.zeros(0) for parts in (logits, labels, right)
    )
    pooled = _fit(x, y, np.array([0.0, 1.0]))
    lines = np.tile(pooled, (classes + 1, 1))
    for name in range(1, classes + 1):
        own = label == name
        lines[name] = _fit(x[own], y[own], pooled)
    return [sigmoid(lines[p.labels, 0] + lines[p.labels, 1] * logit(p.scores)) for p, _ in images]


def _fit(x: Floats, y: Floats, prior: Floats) -> Floats:
    """Fits the chance of `y` as a rising logistic function of `x`; returns (offset, slope), drawn to `prior`."""
    line = prior.copy()
    design = np.stack([np.ones_like(x), x], axis=1)
    for _ in range(30):  # Newton's method; the prior makes the solution unique
        p = sigmoid(design @ line)
        gradient = design.T @ (p - y) + _PRIOR * (line - prior)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + _PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        line = line - step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    line[1] = max(line[1], 0.05)  # a higher score never means less
    return line


def _hits(prediction: Prediction, truth: Truth) -> tuple[Bools, Bools]:
    """Returns which detections overlap a given box of their class, and which lie on an ignored box, (D,) each."""
    iou, shared = iou_and_shared(prediction.boxes, truth.boxes)
    same = prediction.labels[:, None] == truth.labels[None]
    hit = ((iou >= MATCHED) & same & ~truth.ignore).any(axis=1)
    return hit, (_inside(shared, prediction.boxes)[:, truth.ignore] >= MATCHED).any(axis=1) & ~hit


def of_boxes(prediction: Prediction, truth: Truth, q: Floats) -> BoxEvidence:
    """Returns the evidence about the given boxes of an image; that of ignored boxes has no meaning.

    Args:
        prediction: detections of the image.
        truth: given boxes.
        q: chances (D,) that the detections are right.
    """
    iou, _ = iou_and_shared(prediction.boxes, truth.boxes)
    same = prediction.labels[:, None] == truth.labels[None]
    on = ramp(iou, 0.35, 0.6)
    free = ~_claimed(np.where(same, iou, 0.0), iou)
    weight = q[:, None]
    agree, agreeing = _best(weight * on * same)
    other, other_detection = _best(weight * on * (~same & free))
    near, near_detection = _best(weight * ramp(iou, 0.05, 0.2) * (1 - on) * (same & free))
    seen, _ = _best(weight * ramp(iou, 0.05, 0.3) * free)
    overlap = np.take_along_axis(iou, agreeing[None], axis=0)[0] if len(iou) else np.zeros(len(agree))
    overlap = np.where(agree > 0, overlap, 0.0)
    doubts = np.log1p(-np.minimum(weight, 1 - EPS)) * on * (same | free)
    return BoxEvidence(
        agree,
        other,
        near,
        seen,
        other_detection,
        near_detection,
        overlap,
        1 - np.exp(doubts.sum(axis=0)),
        iou.max(axis=0, initial=0.0),
        *_twins(truth, agree),
    )


def of_detections(prediction: Prediction, truth: Truth, q: Floats, boxes: BoxEvidence) -> DetectionEvidence:
    """Returns the evidence about the `MOST` likeliest detections as missing boxes; arguments as for `of_boxes`.

    Of detections that overlap with `MISSING_NMS`, whatever their classes, the likeliest stays.
    """
    iou, shared = iou_and_shared(prediction.boxes, truth.boxes)
    explained = ramp(iou, 0.3, 0.5).max(axis=1, initial=0.0)
    likely = q * (1 - explained)
    # The corners break ties, so that the order of the detections does not matter.
    top = np.lexsort([*prediction.boxes.T[::-1], -likely])[:MOST]
    top = top[likely[top] > 0]
    overlaps, _ = iou_and_shared(prediction.boxes[top], prediction.boxes)
    top, overlaps = _suppressed(top, overlaps)
    with_it = np.log1p(-np.minimum(q, 1 - EPS))[None] * ramp(overlaps, 0.4, 0.6)
    inside = _inside(shared[top], prediction.boxes[top])
    moved = np.zeros(len(q))
    if len(q):
        np.maximum.at(moved, boxes.near_detection, (boxes.near > 0) * (1 - boxes.agree) * ~truth.ignore)
    return DetectionEvidence(
        top,
        1 - np.exp(with_it.sum(axis=1)),
        explained[top],
        inside[:, ~truth.ignore].max(axis=1, initial=0.0),
        moved[top],
        ramp(inside[:, truth.ignore], 0.3, 0.6).max(axis=1, initial=0.0),
    )


def _suppressed(top: Ints, overlaps: Floats) -> tuple[Ints, Floats]:
    """Returns the rows of `top` (M,) and `overlaps` (M, D) that no earlier one overlaps by `MISSING_NMS`."""
    alive = np.ones(len(top), dtype=bool)
    kept = []
    for row in range(len(top)):
        if alive[row]:
            kept.append(row)
            alive &= overlaps[row, top] < MISSING_NMS
    return top[kept], overlaps[kept]


def _claimed(of_class: Floats, iou: Floats) -> Bools:
    """Returns (D, G): whether another box of the detection's class overlaps it enough, and more than this box does."""
    if iou.shape[1] == 0:
        return np.zeros(iou.shape, dtype=bool)
    first = of_class.argmax(axis=1)
    highest = of_class.max(axis=1)
    rest = of_class.copy()
    np.put_along_axis(rest, first[:, None], 0.0, axis=1)
    is_first = np.arange(iou.shape[1])[None] == first[:, None]
    highest_other = np.where(is_first, rest.max(axis=1)[:, None], highest[:, None])
    claimed: Bools = (highest_other >= 0.4) & (highest_other >= iou)
    return claimed


def _best(support: Floats) -> tuple[Floats, Ints]:
    """Returns the highest value of each column and its row; 0 where there are no rows."""
    if len(support) == 0:
        return np.zeros(support.shape[1]), np.zeros(support.shape[1], np.int64)
    rows = support.argmax(axis=0)
    return support.max(axis=0), rows


def _twins(truth: Truth, agree: Floats) -> tuple[Floats, Ints]:
    """Returns the highest IoU of each box with a better one of its class, and the index of that box.

    Of two boxes, the one that detections support more is better, then the larger one, then the first by its corners.
    """
    iou, _ = iou_and_shared(truth.boxes, truth.boxes)
    order = np.lexsort([*truth.boxes.T[::-1], -_area(truth.boxes), -agree])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    better = (place[None] < place[:, None]) & (truth.labels[:, None] == truth.labels[None])
    better &= ~truth.ignore[None] & ~truth.ignore[:, None]
    values, rows = _best((iou * better).T)
    return values, rows


def _inside(shared: Floats, boxes: Floats) -> Floats:
    area = _area(boxes)[:, None]
    return np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)


def _area(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    return area
