"""Suspect annotations, most suspect first: a pure function of annotations and detections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ohem.checks import check_sequence, check_share
from ohem.insight.suspects.calibration import (
    KINDS_OF_BOXES,
    Weights,
    chances_of_boxes,
    chances_of_missing,
    judge,
    missing_features,
)
from ohem.insight.suspects.evidence import BoxEvidence, DetectionEvidence, of_detections
from ohem.metrics.inputs import Floats, Prediction, Truth, pairs
from ohem.targets import ignored, read_targets

Kind = Literal["missing", "class", "place", "background", "duplicate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ABOUT: Mapping[Kind, str] = {
    "missing": "missing box",
    "class": "wrong class",
    "place": "badly placed box",
    "background": "box around nothing",
    "duplicate": "duplicate",
}
LEAST = 0.01
DUPLICATE: Kind = "duplicate"

Box = tuple[float, float, float, float]
"""`[x1, y1, x2, y2]` in pixels."""


@dataclass(frozen=True)
class Suspect:
    """An annotation that may be wrong, or a box that may be missing."""

    image: int
    """Index of the image."""
    kind: Kind
    score: float
    """Chance of an error, 0 to 1."""
    given: int | None
    """Index of the given box in its target; None for a missing box."""
    given_box: Box | None
    given_label: int | None
    proposed_box: Box | None
    """The correction, or None to remove the given box."""
    proposed_label: int | None


def audit(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], *, least: float = LEAST
) -> list[Suspect]:
    """Returns the annotations that detections contradict, most suspect first.

    The detections should come from a detector that was not trained on the image, and should include those of low score.
    Each given box has one suspect at most, of its most likely kind. The score of a suspect depends on all images: the
    detector's scores are calibrated for each class on the given annotations.

    Args:
        targets: per image `boxes` (G, 4), `labels` (G,) of 1..K and, optionally, `ignore` or `iscrowd` (G,). Ignored
            objects are not judged, and are no missing boxes.
        predictions: per image `boxes` (D, 4), `labels` (D,) and `scores` (D,) within 0 and 1.
        least: lowest score of a suspect.

    Raises:
        TypeError, ValueError: a field is missing, of another type or shape, a score is not within 0 and 1, or the
            numbers of targets and predictions differ.
    """
    check_share("least", least)
    images, classes = read_images(targets, predictions)
    judged = judge(images, classes)
    suspects: list[Suspect] = []
    for index, (prediction, truth) in enumerate(images):
        evidence, weights = judged.boxes[index], judged.weights
        suspects += _of_boxes(index, prediction, truth, evidence, judged.features[index], weights, least)
        detected = of_detections(prediction, truth, judged.chances[index], evidence)
        suspects += _missing(index, prediction, detected, weights, least)
    return sorted(suspects, key=lambda suspect: -suspect.score)


def read_images(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[Prediction, Truth]], int]:
    """Returns the images as arrays, and the highest label."""
    check_sequence("predictions", predictions, "dicts, one per image")
    read = read_targets(targets, len(predictions))
    marked = [{"boxes": t["boxes"], "labels": t["labels"], "ignore": ignored(t)} for t in read]
    images = list(pairs(predictions, marked, np.iinfo(np.int64).max))
    for i, (prediction, _) in enumerate(images):
        if ((prediction.scores < 0) | (prediction.scores > 1)).any():
            raise ValueError(f"the prediction of image {i} has a score outside 0..1: give the chance of each detection")
    labels = [label.max(initial=0) for image in images for label in (image[0].labels, image[1].labels)]
    return images, int(max(labels, default=0))


def _of_boxes(
    image: int,
    prediction: Prediction,
    truth: Truth,
    evidence: BoxEvidence,
    features: Floats,
    weights: Weights,
    least: float,
) -> Iterator[Suspect]:
    """Yields the suspects among the given boxes of an image."""
    single, twins = chances_of_boxes(features, evidence.twin_iou, weights)
    kinds = np.concatenate([single, twins[None]]).argmax(axis=0)
    scores = 1 - (1 - single.sum(axis=0)) * (1 - twins)
    for given in np.flatnonzero((scores >= least) & ~truth.ignore):
        kind: Kind = (*KINDS_OF_BOXES, DUPLICATE)[int(kinds[given])]
        box, label = _box(truth.boxes[given]), int(truth.labels[given])
        right_box: Box | None = None
        right_label: int | None = None
        if kind == "class" and evidence.other[given] > 0:
            right_box, right_label = box, int(prediction.labels[evidence.other_detection[given]])
        elif kind == "place" and evidence.near[given] > 0:
            right_box, right_label = _box(prediction.boxes[evidence.near_detection[given]]), label
        elif kind != "duplicate":
            kind = "background"
        score = min(float(scores[given]), 1.0)
        yield Suspect(image, kind, score, int(given), box, label, right_box, right_label)


def _missing(
    image: int, prediction: Prediction, evidence: DetectionEvidence, weights: Weights, least: float
) -> Iterator[Suspect]:
    """Yields the missing boxes of an image."""
    scores = chances_of_missing(missing_features(evidence), evidence.ignored, weights)
    for row in np.flatnonzero(scores >= least):
        box, label = prediction.boxes[evidence.detection[row]], int(prediction.labels[evidence.detection[row]])
        yield Suspect(image, "missing", float(scores[row]), None, None, None, _box(box), label)


def _box(corners: Floats) -> Box:
    x1, y1, x2, y2 = corners.tolist()
    return x1, y1, x2, y2
