"""Average precision and recall as COCO's own program computes them (paper, table 5), and the result file it reads.

hotcoco does the counting: the figures of pycocotools, in a hundredth of the time.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ohem.checks import check_sequence
from ohem.evaluation.inputs import Floats, pairs, read_prediction
from ohem.files import replacing


@dataclass(frozen=True)
class COCOResult:
    """The score of a data set in percent; NaN where no object counts.

    Averages over the IoUs 0.50, 0.55, ..., 0.95 where the name states none; at most 100 detections of each class and
    image where it states none. Small objects have an area below 32 x 32, large ones above 96 x 96 pixels.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    """AP of each class."""
    images: int


# The fields that are figures of the whole data set, with hotcoco's names of them.
FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
    "ar_small": "ARs",
    "ar_medium": "ARm",
    "ar_large": "ARl",
}


def evaluate(
    predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], *, classes: Sequence[str]
) -> COCOResult:
    """Score detections against ground truth as pycocotools does for boxes.

    Args:
        predictions: per image a mapping of boxes `[D, 4]`, scores `[D]` and labels `[D]`, tensors or arrays. Equal
            scores rank in the order of the images, and within one in the order given.
        targets: aligned with it, a mapping of boxes `[G, 4]`, labels `[G]`, ignore `[G]` (none if absent) and area
            `[G]` (the boxes' if absent). Boxes with `ignore` are crowds: they are not to be found, and detections in
            them count neither way.
        classes: names of the labels 1..K.

    Raises:
        ValueError: predictions and targets differ in number, an image's fields differ in length, a label is not in
            1..K, or a score is NaN.
    """
    check_sequence("classes", classes, "names")
    import hotcoco

    truth, found, images = _tables(predictions, targets, len(classes))
    dataset = hotcoco.COCO.from_arrays(
        [{"id": image} for image in range(1, images + 1)],
        [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        truth[:, 0].astype(np.int64),
        truth[:, 5].astype(np.int64),
        truth[:, 1:5],
        iscrowd=truth[:, 6].astype(np.int64),
        area=truth[:, 7],
    )
    scorer = hotcoco.COCOeval(dataset, dataset.load_res(found), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summary_lines()  # summarize() would print them
    totals = dict(zip(scorer.metric_keys(), scorer.stats, strict=True))
    figures: dict[str, Any] = {name: _percent(totals[key]) for name, key in FIGURES.items()}
    counts = scorer.eval
    assert counts is not None  # after accumulate()
    # IoU x recall x class, of all areas and 100 detections; -1 where the class has no object
    precision = counts["precision"][..., 0, 2]
    per_class = {name: _percent(precision[..., i].mean()) for i, name in enumerate(classes)}
    return COCOResult(**figures, per_class=per_class, images=images)


def write_results(
    path: Path, predictions: Iterable[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Mapping[int, int]
) -> None:
    """Write detections in the format that COCO's program and test server read.

    Args:
        path: the JSON file.
        predictions: per image as `evaluate` takes them, boxes in pixels of the image.
        image_ids: the images' numbers in the annotations, aligned with it.
        category_ids: label in 1..K -> the class's number in the annotations. Detections of a label that it lacks are
            left out, with one warning.
    """
    lacking, separator = 0, ""
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, prediction in zip(image_ids, predictions, strict=True):
            found = read_prediction(prediction, f"the prediction of image {number}")
            columns = (column.tolist() for column in (found.labels, _sized(found.boxes), found.scores))
            for label, box, score in zip(*columns, strict=True):
                if label not in category_ids:
                    lacking += 1
                    continue
                entry = {"image_id": number, "category_id": category_ids[label], "bbox": box, "score": score}
                file.write(f"{separator}{json.dumps(entry)}")
                separator = ",\n"
        file.write("]\n")
    if lacking:
        warnings.warn(
            f"{path}: left out {lacking} detections of classes that the annotations do not list",
            UserWarning,
            stacklevel=2,
        )


def _tables(
    predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], classes: int
) -> tuple[Floats, Floats, int]:
    """Image (from 1), x, y, width, height, label, crowd and area of all objects, `[*, 8]`; image, x, y, width, height,
    score and label of all detections, `[*, 7]`; the number of images."""
    truths, founds, images = [np.zeros((0, 8))], [np.zeros((0, 7))], 0
    for found, truth in pairs(predictions, targets, classes):
        images += 1
        truths.append(_table(images, _sized(truth.boxes), truth.labels, truth.ignore, truth.area))
        founds.append(_table(images, _sized(found.boxes), found.scores, found.labels))
    return np.concatenate(truths), np.concatenate(founds), images


def _table(image: int, boxes: Floats, *columns: Any) -> Floats:
    return np.column_stack([np.full(len(boxes), float(image)), boxes, *columns])


def _sized(boxes: Floats) -> Floats:
    """`[x1, y1, x2, y2]` -> `[x, y, width, height]`."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else float("nan")
