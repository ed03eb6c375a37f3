"""Types of the errors of detections, and the AP that each type costs, as TIDE counts them (Bolya et al., ECCV 2020).

D: detections of an image   G: ground-truth boxes of an image   E: false detections of all images
M: missed objects of all images   K: classes, labelled 1..K
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ohem.checks import check_number, check_sequence
from ohem.metrics.inputs import Bools, Floats, Ints, Prediction, Truth, pairs
from ohem.metrics.matching import overlaps

TYPES = ("class", "location", "both", "duplicate", "background", "missed")
"""Types of errors. All but the last are types of false detections."""
MOST = 100
"""Number of detections of an image that count, those of the highest scores."""

_CLASS, _LOCATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(TYPES))
_RIGHT = -1
_STEPS = np.arange(101) / 100  # recalls at which COCO's AP reads the precision


@dataclass(frozen=True)
class FalseDetections:
    """The detections that are not true positives, image by image, the best score of an image first."""

    images: Ints
    """(E,) index of the image."""
    detections: Ints
    """(E,) index of the detection in the prediction of its image."""
    types: npt.NDArray[np.str_]
    """(E,) one of the first five `TYPES`."""
    objects: Ints
    """(E,) index of the object, in the target of its image, that makes the error one of its type. Of a "location" or
    "duplicate" error it is an object of its class, of a "class" error one of another class, of the others any class. It
    is the object of the highest IoU, or -1 if the detection overlaps no object."""
    ious: Floats
    """(E,) IoU with that object; 0 where there is none."""
    ignored: Bools
    """(E,) whether the detection lies in an ignored box of its class. Then it is no false positive, and lowers no AP,
    but TIDE counts it, since a better box or class could make it a true positive."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class MissedObjects:
    """The objects of the type "missed", image by image."""

    images: Ints
    """(M,) index of the image."""
    objects: Ints
    """(M,) index of the object in the target of its image."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ErrorTypes:
    """Number of errors of each type, and the AP that it costs. The keys of a type are `TYPES`."""

    ap: float
    """Mean over the classes in percent, at one IoU and at 101 recalls as COCO's. A class with detections and without
    objects counts as 0, as in TIDE and unlike in COCO. NaN if there are neither detections nor objects."""
    ap_per_class: dict[str, float]
    """AP of each class; NaN where it has neither detections nor objects."""
    counts: dict[str, int]
    dap: dict[str, float]
    """Gain in `ap`, in points, if all errors of the type were fixed and no other; at least 0."""
    counts_per_class: dict[str, dict[str, int]]
    """Class -> type -> number of false detections that were taken for this class, or of its missed objects."""
    dap_per_class: dict[str, dict[str, float]]
    """Class -> type -> gain in AP of this class if all errors of the type, of every class, were fixed; at least 0."""
    false_detections: FalseDetections
    missed_objects: MissedObjects
    images: int


class _Detections(NamedTuple):
    """The detections that count, one row each."""

    images: Ints
    places: Ints
    labels: Ints
    scores: Floats
    types: Ints  # index into TYPES, or _RIGHT
    objects: Ints
    ious: Floats
    ignored: Bools
    targets: Ints  # labels of the objects
    recovers: Bools  # whether fixing the error turns it into the true positive of its object


class _Objects(NamedTuple):
    """The objects that are not ignored, one row each."""

    images: Ints
    places: Ints
    labels: Ints
    missed: Bools


def error_types(
    predictions: Iterable[Mapping[str, Any]],
    targets: Iterable[Mapping[str, Any]],
    *,
    classes: Sequence[str],
    iou: float = 0.5,
    background_iou: float = 0.1,
) -> ErrorTypes:
    """Finds the type of each error of detections, and how much AP the errors of each type cost.

    The `MOST` best detections of an image are matched, best score first, each with the free object of its class of the
    highest IoU, if that is at least `iou`. Each of the others gets the first type that fits:

    - "location": its highest IoU with an object of its class is from `background_iou` to `iou`;
    - "class": its highest IoU with an object of another class is at least `iou`;
    - "duplicate": its IoU with a detected object of its class is at least `iou`;
    - "background": its IoU with every object is at most `background_iou`;
    - "both": class and location are wrong.

    An object is "missed" if it is not detected, and no error of class or location is one about it.

    To fix an error of class or location turns the detection into the true positive of its object, if the object is not
    detected and the detection is the best of those with either error about it; otherwise it removes the detection. To
    fix a duplicate, background or other error removes the detection, to fix a missed object removes the object.

    Args:
        predictions: mapping of boxes `[D, 4]`, scores `[D]` and labels `[D]` for each image, tensors or arrays.
        targets: mapping of boxes `[G, 4]`, labels `[G]` and ignore `[G]` (default: none is ignored) for each image, in
            the same order. A detection that matches no object, and of whose area more than `iou` lies in an ignored
            box of its class, is no false positive (COCO's crowds).
        classes: names of the labels 1..K.
        iou: lowest IoU of a true positive.
        background_iou: highest IoU with an object of a detection in the background; below `iou`.

    Raises:
        TypeError: an argument is of another type.
        ValueError: predictions and targets differ in number, an image's fields differ in length, a label is not in
            1..K, a score is NaN, or an IoU is out of range.
    """
    check_sequence("classes", classes, "names")
    check_number("iou", iou, 1e-6, 1)
    check_number("background_iou", background_iou, 1e-6, 1)
    if background_iou >= iou:
        raise ValueError(f"background_iou must be below iou, {iou}, not {background_iou}")
    detections, objects, images = _classify_all(predictions, targets, len(classes), iou, background_iou)
    npos = np.bincount(objects.labels, minlength=len(classes) + 1)[1:]
    right = detections.types == _RIGHT
    given = ~(detections.ignored & ~right)
    before = _average_precisions(detections.labels[given], detections.scores[given], right[given], npos)
    after = [_fixed(detections, objects, npos, number) for number in range(len(TYPES))]
    counts = _count(detections, objects, len(classes))
    return ErrorTypes(
        ap=_mean(before),
        ap_per_class=dict(zip(classes, before.tolist(), strict=True)),
        counts=dict(zip(TYPES, counts.sum(axis=0).tolist(), strict=True)),
        dap={name: _gain(_mean(before), _mean(fixed)) for name, fixed in zip(TYPES, after, strict=True)},
        counts_per_class={
            name: dict(zip(TYPES, row, strict=True)) for name, row in zip(classes, counts.tolist(), strict=True)
        },
        dap_per_class={
            name: {kind: _gain(before[i], fixed[i]) for kind, fixed in zip(TYPES, after, strict=True)}
            for i, name in enumerate(classes)
        },
        false_detections=_false_detections(detections),
        missed_objects=MissedObjects(objects.images[objects.missed], objects.places[objects.missed]),
        images=images,
    )


def _false_detections(detections: _Detections) -> FalseDetections:
    rows = detections.types != _RIGHT
    images, places, _, _, types, objects, ious, ignored, *_ = (column[rows] for column in detections)
    return FalseDetections(images, places, np.array(TYPES)[types], objects, ious, ignored)


def _classify_all(
    predictions: Iterable[Mapping[str, Any]],
    targets: Iterable[Mapping[str, Any]],
    classes: int,
    iou: float,
    background_iou: float,
) -> tuple[_Detections, _Objects, int]:
    """Returns the detections and the objects of all images, and the number of images."""
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    detections = [_Detections(none, none, none, np.zeros(0), none, none, np.zeros(0), nothing, none, nothing)]
    objects, images = [_Objects(none, none, none, nothing)], 0
    for prediction, truth in pairs(predictions, targets, classes):
        of_image = _classify(images, prediction, truth, iou, background_iou)
        detections.append(of_image[0])
        objects.append(of_image[1])
        images += 1
    return (
        _Detections(*map(np.concatenate, zip(*detections, strict=True))),
        _Objects(*map(np.concatenate, zip(*objects, strict=True))),
        images,
    )


def _classify(
    image: int, prediction: Prediction, truth: Truth, iou: float, background_iou: float
) -> tuple[_Detections, _Objects]:
    """Returns the detections of one image that count, with their types, and its objects."""
    index = np.argsort(-prediction.scores, kind="stable")[:MOST]
    boxes, labels, scores = prediction.boxes[index], prediction.labels[index], prediction.scores[index]
    rows = np.flatnonzero(~truth.ignore)
    targets = truth.labels[rows]
    shared = overlaps(boxes, truth.boxes[rows])
    same = labels[:, None] == targets[None]
    right, detected = _match(shared * same, iou)
    ignored = ~right & _in_ignored(boxes, labels, truth, iou)
    types, of, best = _types_of_errors(shared, same, detected, iou, background_iou)
    types[right] = _RIGHT
    recoverable = np.isin(types, (_CLASS, _LOCATION)) & ~np.append(detected, False)[of]
    recovers = np.zeros(len(index), dtype=bool)
    first_of_object, first = np.unique(of[recoverable], return_index=True)
    recovers[np.flatnonzero(recoverable)[first]] = True
    missed = ~detected
    missed[first_of_object] = False
    images = np.full(len(index), image)
    nearest, labels_of_nearest = np.append(rows, -1)[of], np.append(targets, 0)[of]
    return (
        _Detections(images, index, labels, scores, types, nearest, best, ignored, labels_of_nearest, recovers),
        _Objects(np.full(len(rows), image), rows, targets, missed),
    )


def _match(shared: Floats, iou: float) -> tuple[Bools, Bools]:
    """Returns which detections are true positives, and which objects are detected.

    Args:
        shared: IoU `[D, G]`, 0 for other classes; rows in the order of the scores. It is changed.
        iou: lowest IoU of a true positive.
    """
    right, detected = np.zeros(shared.shape[0], dtype=bool), np.zeros(shared.shape[1], dtype=bool)
    for row in np.flatnonzero((shared >= iou).any(axis=1)):
        best = shared[row].argmax()
        if shared[row, best] >= iou:
            right[row] = detected[best] = True
            shared[:, best] = 0
    return right, detected


def _in_ignored(boxes: Floats, labels: Ints, truth: Truth, iou: float) -> Bools:
    """Returns which detections lie, with more than `iou` of their area, in an ignored box of their class."""
    inside = overlaps(boxes, truth.boxes[truth.ignore], of_first=True) > iou
    result: Bools = (inside & (labels[:, None] == truth.labels[truth.ignore][None])).any(axis=1)
    return result


def _types_of_errors(
    shared: Floats, same: Bools, detected: Bools, iou: float, background_iou: float
) -> tuple[Ints, Ints, Floats]:
    """Returns for each row its type if it is an error, the column of its object (-1: none) and the IoU with it.

    Args:
        shared: IoU `[D, G]`.
        same: whether the classes are the same `[D, G]`.
        detected: which objects are detected `[G]`.
        iou: lowest IoU of a true positive.
        background_iou: highest IoU of a detection in the background.
    """
    if not shared.shape[1]:
        count = len(shared)
        return np.full(count, _BACKGROUND), np.full(count, -1), np.zeros(count)
    own, other, twice = shared * same, shared * ~same, shared * (same & detected)
    highest = {_LOCATION: own, _CLASS: other, _DUPLICATE: twice, _BACKGROUND: shared, _BOTH: shared}
    tops = {kind: values.max(axis=1) for kind, values in highest.items()}
    fits = [
        (background_iou <= tops[_LOCATION]) & (tops[_LOCATION] <= iou),
        tops[_CLASS] >= iou,
        tops[_DUPLICATE] >= iou,
        tops[_BACKGROUND] <= background_iou,
    ]
    types = np.select(fits, [_LOCATION, _CLASS, _DUPLICATE, _BACKGROUND], _BOTH)
    of, best = np.full(len(types), -1), np.zeros(len(types))
    for kind, values in highest.items():
        rows = types == kind
        of[rows], best[rows] = values[rows].argmax(axis=1), tops[kind][rows]
    return types, np.where(best > 0, of, -1), best


def _fixed(detections: _Detections, objects: _Objects, npos: Ints, kind: int) -> Floats:
    """Returns the AP of each class after all errors of the type `kind` are fixed."""
    right, fixed = detections.types == _RIGHT, detections.types == kind
    recovered = fixed & detections.recovers
    kept = np.where(fixed, recovered, ~detections.ignored | right)
    # Of equal scores, the errors come first: the order of TIDE.
    order = np.concatenate([np.flatnonzero(kept & ~right), np.flatnonzero(right)])
    labels = np.where(recovered, detections.targets, detections.labels)[order]
    if kind == _MISSED:
        npos = npos - np.bincount(objects.labels[objects.missed], minlength=len(npos) + 1)[1:]
    return _average_precisions(labels, detections.scores[order], (right | recovered)[order], npos)


def _average_precisions(labels: Ints, scores: Floats, right: Bools, npos: Ints) -> Floats:
    """Returns the AP `[K]` of each class in percent; NaN for a class that has neither detections nor objects.

    Args:
        labels, scores, right: class, score and whether it is a true positive of each detection. Equal scores rank in
            the given order.
        npos: number of objects of each class `[K]`.
    """
    order = np.lexsort((-scores, labels))
    labels, right = labels[order], right[order]
    ends = np.searchsorted(labels, np.arange(1, len(npos) + 2))
    result = np.zeros(len(npos))
    for i, count in enumerate(npos):
        of_class = right[ends[i] : ends[i + 1]]
        if not count:
            result[i] = 0 if len(of_class) else np.nan
            continue
        true = np.cumsum(of_class)
        precision = true / np.arange(1, len(of_class) + 1)
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)  # the last: a recall that is not reached
        result[i] = 100 * envelope[np.searchsorted(true / count, _STEPS)].mean()
    return result


def _count(detections: _Detections, objects: _Objects, classes: int) -> Ints:
    """Returns the number of errors `[K, 6]` of each class and type."""
    wrong = detections.types != _RIGHT
    labels = np.concatenate([detections.labels[wrong], objects.labels[objects.missed]])
    types = np.concatenate([detections.types[wrong], np.full(np.count_nonzero(objects.missed), _MISSED)])
    counts = np.bincount((labels - 1) * len(TYPES) + types, minlength=classes * len(TYPES))
    return counts.reshape(classes, len(TYPES))


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _gain(before: float, after: float) -> float:
    """Returns the gain in AP, at least 0: where nothing is left to be measured, or the 101 recalls lie worse."""
    return max(float(after - before), 0.0) if np.isfinite(after) and np.isfinite(before) else 0.0
