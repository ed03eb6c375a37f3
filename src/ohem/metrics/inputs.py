"""The input of every metric, after checks: pairs of predictions and ground truth, image by image.

D: detections of an image   G: ground-truth boxes of an image   K: classes, labelled 1..K
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ohem.checks import check_mapping

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Prediction(NamedTuple):
    """The detections of an image."""

    boxes: Floats  # [D, 4]
    labels: Ints
    scores: Floats


class Truth(NamedTuple):
    """The ground truth of an image."""

    boxes: Floats  # [G, 4]
    labels: Ints
    ignore: Bools
    area: Floats


def pairs(
    predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], classes: int
) -> Iterator[tuple[Prediction, Truth]]:
    """Yields the prediction and the ground truth of each image, as arrays on the CPU.

    Raises:
        ValueError: predictions and targets differ in number, an image's fields differ in length, a label is not in
            1..K, or a score or an area is NaN.
    """
    for image, (prediction, target) in enumerate(zip_longest(predictions, targets)):
        if prediction is None or target is None:
            few, many = ("predictions", "targets") if prediction is None else ("targets", "predictions")
            raise ValueError(
                f"there are more {many} than {few}, of which there are {image}: give one of both for every image"
            )
        yield (
            read_prediction(prediction, f"the prediction of image {image}", classes),
            _read_truth(target, f"the target of image {image}", classes),
        )


def read_prediction(prediction: Mapping[str, Any], subject: str, classes: int | None = None) -> Prediction:
    """Returns the detections of one image, which messages call `subject`. Raises `ValueError` as `pairs` does.

    Labels are checked only if the number of `classes` is given.
    """
    boxes, labels = _boxes_and_labels(prediction, subject, classes)
    check_mapping(subject, prediction, ("scores",))
    return Prediction(boxes, labels, _column(prediction["scores"], subject, "scores", len(boxes)))


def _read_truth(target: Mapping[str, Any], subject: str, classes: int) -> Truth:
    boxes, labels = _boxes_and_labels(target, subject, classes)
    ignore = _column(target.get("ignore", np.zeros(len(boxes))), subject, "ignore", len(boxes))
    area = target.get("area", (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return Truth(boxes, labels, ignore != 0, _column(area, subject, "area", len(boxes)))


def _boxes_and_labels(item: Mapping[str, Any], subject: str, classes: int | None) -> tuple[Floats, Ints]:
    check_mapping(subject, item, ("boxes", "labels"))
    boxes, labels = _array(item["boxes"]).reshape(-1, 4), _array(item["labels"]).astype(np.int64)
    if not np.isfinite(boxes).all():
        raise ValueError(f"{subject} has boxes that are NaN or infinite: leave them out")
    if len(boxes) != len(labels):
        raise ValueError(f"{subject} has {len(boxes)} boxes and {len(labels)} labels: they must agree")
    if classes is not None and np.any((labels < 1) | (labels > classes)):
        raise ValueError(f"{subject} has a label outside 1..{classes}: labels count from 1, in the order of `classes`")
    return boxes, labels


def _column(values: Any, subject: str, name: str, count: int) -> Floats:
    column = _array(values)
    if len(column) != count:
        raise ValueError(f"{subject} has {count} boxes and {len(column)} {name}: they must agree")
    if np.isnan(column).any():
        raise ValueError(f"{subject} has a NaN among its {name}: it cannot be ranked")
    return column


def _array(values: Any) -> Floats:
    """Converts a tensor of any dtype (bfloat16 too), an array or a list to float64 on the CPU."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, np.float64)
