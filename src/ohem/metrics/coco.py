"""Average precision and recall as COCO's own program computes them (paper, table 5), and the result file it reads.

The numbers are computed by hotcoco: they equal those of pycocotools, and take a hundredth of the time.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ohem.checks import check_sequence
from ohem.io.files import atomic_write
from ohem.metrics.inputs import Floats, pairs, read_prediction


@dataclass(frozen=True)
class COCOResult:
    """Scores of a data set in percent; NaN if no object counts.

    A score without an IoU in its name is the mean over the IoUs 0.50, 0.55, ..., 0.95. A score without a number of
    detections in its name counts at most 100 detections per class and image. Small objects have an area below 32 x 32
    pixels, large ones above 96 x 96.
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


class Figure(NamedTuple):
    """One of COCO's twelve figures: its name in hotcoco, and what it is a mean of."""

    key: str
    kind: str
    iou: str
    objects: str
    detections: str
    """Highest number of detections per class and image."""


# Every field of `COCOResult` that is a figure of the whole data set.
FIGURES = {
    "ap": Figure("AP", "AP", "0.50:0.95", "all", "100"),
    "ap50": Figure("AP50", "AP", "0.50", "all", "100"),
    "ap75": Figure("AP75", "AP", "0.75", "all", "100"),
    "ap_small": Figure("APs", "AP", "0.50:0.95", "small", "100"),
    "ap_medium": Figure("APm", "AP", "0.50:0.95", "medium", "100"),
    "ap_large": Figure("APl", "AP", "0.50:0.95", "large", "100"),
    "ar1": Figure("AR1", "AR", "0.50:0.95", "all", "1"),
    "ar10": Figure("AR10", "AR", "0.50:0.95", "all", "10"),
    "ar100": Figure("AR100", "AR", "0.50:0.95", "all", "100"),
    "ar_small": Figure("ARs", "AR", "0.50:0.95", "small", "100"),
    "ar_medium": Figure("ARm", "AR", "0.50:0.95", "medium", "100"),
    "ar_large": Figure("ARl", "AR", "0.50:0.95", "large", "100"),
}


def evaluate(
    predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], *, classes: Sequence[str]
) -> COCOResult:
    """Scores detections against ground truth as pycocotools does for boxes.

    Args:
        predictions: mapping of boxes `[D, 4]`, scores `[D]` and labels `[D]` for each image, tensors or arrays. Equal
            scores rank in the order of the images, and within an image in the given order.
        targets: mapping of boxes `[G, 4]`, labels `[G]`, ignore `[G]` (default: none is ignored) and area `[G]`
            (default: area of the boxes) for each image, in the same order. Boxes with `ignore` are crowds: they need
            not be detected, and detections in them are neither true nor false positives.
        classes: names of the labels 1..K.

    Returns:
        The twelve figures, AP per class, and the number of images.

    Raises:
        ValueError: predictions and targets differ in number, an image's fields differ in length, a label is not in
            1..K, or a score is NaN.
    """
    check_sequence("classes", classes, "names")
    import hotcoco

    truth, detections, images = _tables(predictions, targets, len(classes))
    dataset = hotcoco.COCO.from_arrays(
        [{"id": image} for image in range(1, images + 1)],
        [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        truth[:, 0].astype(np.int64),
        truth[:, 5].astype(np.int64),
        truth[:, 1:5],
        iscrowd=truth[:, 6].astype(np.int64),
        area=truth[:, 7],
    )
    scorer = hotcoco.COCOeval(dataset, dataset.load_res(detections), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summary_lines()  # computes the figures; summarize() would also print them
    totals = dict(zip(scorer.metric_keys(), scorer.stats, strict=True))
    figures: dict[str, Any] = {name: _percent(totals[figure.key]) for name, figure in FIGURES.items()}
    counts = scorer.eval
    assert counts is not None  # after accumulate()
    # IoU x recall x class, for all areas and 100 detections; -1 if the class has no object.
    precision = counts["precision"][..., 0, 2]
    per_class = {name: _percent(precision[..., i].mean()) for i, name in enumerate(classes)}
    return COCOResult(**figures, per_class=per_class, images=images)


def write_results(
    path: Path, predictions: Iterable[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Mapping[int, int]
) -> None:
    """Writes detections in the format that COCO's program and test server read.

    Args:
        path: path of the JSON file.
        predictions: predictions of each image as for `evaluate`, with boxes in pixels of the image.
        image_ids: ids of the images in the annotations, in the same order.
        category_ids: id of the class in the annotations for each label in 1..K. Detections of other labels are left
            out, with one warning.
    """
    left_out, separator = 0, ""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, prediction in zip(image_ids, predictions, strict=True):
            detections = read_prediction(prediction, f"the prediction of image {number}")
            columns = (c.tolist() for c in (detections.labels, _with_sizes(detections.boxes), detections.scores))
            for label, box, score in zip(*columns, strict=True):
                if label not in category_ids:
                    left_out += 1
                    continue
                entry = {"image_id": number, "category_id": category_ids[label], "bbox": box, "score": score}
                file.write(f"{separator}{json.dumps(entry)}")
                separator = ",\n"
        file.write("]\n")
    if left_out:
        warnings.warn(
            f"{path}: left out {left_out} detections of classes that the annotations do not list",
            UserWarning,
            stacklevel=2,
        )


def _tables(
    predictions: Iterable[Mapping[str, Any]], targets: Iterable[Mapping[str, Any]], classes: int
) -> tuple[Floats, Floats, int]:
    """Returns a table of all objects, a table of all detections, and the number of images.

    Columns of the objects `[*, 8]`: image (from 1), x, y, width, height, label, crowd, area. Columns of the detections
    `[*, 7]`: image, x, y, width, height, score, label.
    """
    objects, detections, images = [np.zeros((0, 8))], [np.zeros((0, 7))], 0
    for prediction, truth in pairs(predictions, targets, classes):
        images += 1
        objects.append(_table(images, _with_sizes(truth.boxes), truth.labels, truth.ignore, truth.area))
        detections.append(_table(images, _with_sizes(prediction.boxes), prediction.scores, prediction.labels))
    return np.concatenate(objects), np.concatenate(detections), images


def _table(image: int, boxes: Floats, *columns: Any) -> Floats:
    return np.column_stack([np.full(len(boxes), float(image)), boxes, *columns])


def _with_sizes(boxes: Floats) -> Floats:
    """Converts `[x1, y1, x2, y2]` to `[x, y, width, height]`."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else float("nan")
