"""What turns evidence into the chance of an error: logistic functions that were fitted to planted errors.

`python -m benchmarks.audit.calibrate` prints the coefficients; it says from which data they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ohem.insight.suspects.evidence import (
    EPS,
    BoxEvidence,
    DetectionEvidence,
    chances,
    logit,
    of_boxes,
    sigmoid,
)
from ohem.metrics.inputs import Floats, Prediction, Truth

KINDS_OF_BOXES: tuple[Literal["class", "place", "background"], ...] = ("class", "place", "background")
"""Kinds of which a given box has one, besides that it may be a duplicate."""


class Weights(NamedTuple):
    """Coefficients of the logistic functions."""

    boxes: Mapping[str, tuple[float, ...]]
    """Offset and weights of the features of boxes for the log odds of each of `KINDS_OF_BOXES` against a right box."""
    missing: tuple[float, ...]
    """Offset and weights of `missing_features`."""
    duplicate: tuple[float, float]
    """Offset and weight of the IoU of two boxes of one class."""


LOW = 0.01
"""Where no detection has a lower score, the detector reports only confident detections."""
CONFIDENT_SCORE = 0.05
"""Lowest score of a confident detection."""
COMPLETE = Weights(
    {
        "class": (
            -7.42,
            -1.04,
            -0.29,
            -0.23,
            -0.55,
            1.67,
            -0.31,
            0.05,
            0.24,
            -0.80,
            0.97,
            0.12,
            0.21,
            -0.50,
            0.39,
            0.12,
            -0.19,
        ),
        "place": (
            15.85,
            -0.78,
            0.13,
            0.50,
            -0.04,
            0.70,
            -1.70,
            -0.07,
            -4.44,
            0.53,
            0.31,
            0.29,
            0.25,
            -0.70,
            1.85,
            0.09,
            -1.46,
        ),
        "background": (
            7.19,
            -0.56,
            1.03,
            0.01,
            -0.00,
            0.07,
            -1.22,
            -4.16,
            -5.53,
            0.41,
            1.57,
            -0.20,
            -0.17,
            -1.14,
            2.20,
            -3.37,
            -2.90,
        ),
    },
    (-0.70, 1.73, -6.00, -8.41, -3.52),
    (-4.50, 8.31),
)
"""For detections of low score too: features of all detections, then those of the confident ones."""
CONFIDENT = Weights(
    {
        "class": (-6.54, -1.78, 0.87, -0.10, -0.45, 1.11, -0.02, -0.13, -0.03),
        "place": (0.57, -0.23, 0.20, 0.94, 0.48, -0.28, -0.53, -1.50, -1.80),
        "background": (-0.77, -0.32, 1.59, -0.20, 0.12, -0.90, 0.08, -2.48, -3.06),
    },
    (-1.28, 0.92, -6.19, -9.46, -2.14),
    (-4.50, 8.31),
)
"""For confident detections alone."""


class Judged(NamedTuple):
    """Detections and given boxes of all images as evidence; the lists have an entry for each image."""

    chances: list[Floats]
    """Chances (D,) that the detections are right."""
    boxes: list[BoxEvidence]
    features: list[Floats]
    """(G, 8) where there are confident detections alone, otherwise (G, 16)."""
    weights: Weights


def judge(images: Sequence[tuple[Prediction, Truth]], classes: int) -> Judged:
    """Returns the evidence about the given boxes of a data set with labels 1..`classes`."""
    q, boxes, features = _evidence(images, classes)
    if not any((prediction.scores < LOW).any() for prediction, _ in images):
        return Judged(q, boxes, features, CONFIDENT)
    _, _, of_confident = _evidence([(_confident(prediction), truth) for prediction, truth in images], classes)
    both = [np.concatenate(pair, axis=1) for pair in zip(features, of_confident, strict=True)]
    return Judged(q, boxes, both, COMPLETE)


def _confident(prediction: Prediction) -> Prediction:
    kept = prediction.scores >= CONFIDENT_SCORE
    return Prediction(prediction.boxes[kept], prediction.labels[kept], prediction.scores[kept])


def _evidence(
    images: Sequence[tuple[Prediction, Truth]], classes: int
) -> tuple[list[Floats], list[BoxEvidence], list[Floats]]:
    """Returns the chances of the detections, the evidence about the boxes, and the features of the boxes (G, 8).

    The features are log odds of `agree`, `other`, `near`, `seen` and `object`, the log odds of the mean agreement in
    the class, which is drawn to the mean of all classes, how well the box fits in comparison with others, and
    `nearest`.
    """
    q = chances(images, classes)
    boxes = [of_boxes(*image, chance) for image, chance in zip(images, q, strict=True)]
    rated = [~truth.ignore for _, truth in images]
    labels, agree, overlap = (
        np.concatenate([column[rows] for column, rows in zip(columns, rated, strict=True)] or [np.zeros(0)])
        for columns in ([t.labels for _, t in images], [e.agree for e in boxes], [e.overlap for e in boxes])
    )
    labels = labels.astype(np.int64)
    mean = (agree.sum() + 1) / (len(agree) + 2)
    counts = np.bincount(labels, minlength=classes + 1)
    known = logit((np.bincount(labels, agree, minlength=classes + 1) + 5 * mean) / (counts + 5))
    agreed = overlap[agree > 0.5]
    usual = float(np.median(agreed)) if len(agreed) else 0.75
    # What is not detected has the lowest chance of a detection.
    lowest = min((float(chance.min()) for chance in q if len(chance)), default=EPS)
    least = float(np.clip(lowest, EPS, 0.05))
    features = []
    for (_, truth), about in zip(images, boxes, strict=True):
        fit = np.where(about.agree > 0.05, (about.overlap - usual).clip(-0.4, 0.1), -0.4)
        odds = [logit(chance, least) for chance in (about.agree, about.other, about.near, about.seen, about.object)]
        features.append(np.stack([*odds, known[truth.labels], 5 * fit, 5 * about.nearest], axis=1))
    return q, boxes, features


def missing_features(evidence: DetectionEvidence) -> Floats:
    """Returns (M, 4): log odds of an object, and what explains it without a missing box."""
    return np.stack([logit(evidence.object), evidence.explained, evidence.inside, evidence.moved], axis=1)


def chances_of_boxes(features: Floats, twin_iou: Floats, weights: Weights) -> tuple[Floats, Floats]:
    """Returns the chances (3, G) of `KINDS_OF_BOXES`, and those (G,) of a duplicate."""
    table = np.array([weights.boxes[kind] for kind in KINDS_OF_BOXES])
    odds = np.exp(np.clip(table[:, :1] + table[:, 1:] @ features.T, -50, 50))
    offset, slope = weights.duplicate
    twins = np.where(twin_iou > 0, sigmoid(offset + slope * twin_iou), 0.0)
    return odds / (1 + odds.sum(axis=0)), twins


def chances_of_missing(features: Floats, ignored: Floats, weights: Weights) -> Floats:
    """Returns the chances (M,) that boxes are missing; in ignored regions there is none."""
    offset, *slopes = weights.missing
    return sigmoid(offset + features @ np.array(slopes)) * (1 - ignored)
