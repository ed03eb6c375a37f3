"""How detections are scored and the score is told: as numbers for RUN/eval.json and as a table for the person."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from torch import Tensor

from ohem.console import make_table
from ohem.data.coco import COCODetection
from ohem.data.dataset import DetectionSet
from ohem.evaluation import coco, voc
from ohem.training.config import Metric

# Of `COCOResult`: kind, IoU, size of the objects, most detections of a class in an image.
_COCO_ROWS = {
    "ap": ("AP", "0.50:0.95", "all", "100"),
    "ap50": ("AP", "0.50", "all", "100"),
    "ap75": ("AP", "0.75", "all", "100"),
    "ap_small": ("AP", "0.50:0.95", "small", "100"),
    "ap_medium": ("AP", "0.50:0.95", "medium", "100"),
    "ap_large": ("AP", "0.50:0.95", "large", "100"),
    "ar1": ("AR", "0.50:0.95", "all", "1"),
    "ar10": ("AR", "0.50:0.95", "all", "10"),
    "ar100": ("AR", "0.50:0.95", "all", "100"),
    "ar_small": ("AR", "0.50:0.95", "small", "100"),
    "ar_medium": ("AR", "0.50:0.95", "medium", "100"),
    "ar_large": ("AR", "0.50:0.95", "large", "100"),
}


def usual_metric(data: DetectionSet) -> Metric:
    """The metric of the data's own challenge."""
    return "coco" if isinstance(data, COCODetection) else "voc07"


def score(found: Sequence[dict[str, Tensor]], data: DetectionSet, metric: Metric) -> tuple[dict[str, Any], Table]:
    """Scores the detections `found` in the images of `data`: `metric`, `map`, `ap` per class and more, and a table.

    VOC's metrics take crowds as `difficult`, COCO's take `difficult` objects as crowds.
    """
    targets = [data.target(i) for i in range(len(data))]
    if metric == "coco":
        result = coco.evaluate(found, targets, classes=data.classes)
        others = {name: _or_null(getattr(result, name)) for name in _COCO_ROWS if name != "ap"}
        return _report(metric, result.ap, result.per_class) | others, _coco_table(result)
    voc_result = voc.evaluate(found, targets, metric=metric, classes=data.classes)
    return _report(metric, voc_result.map, voc_result.ap), _voc_table(voc_result)


def _report(metric: Metric, mean: float, per_class: dict[str, float]) -> dict[str, Any]:
    return {
        "metric": metric,
        "map": _or_null(mean),
        "ap": {name: _or_null(value) for name, value in per_class.items()},
    }


def _voc_table(result: voc.VOCResult) -> Table:
    table = make_table("class", "objects", f"AP ({result.metric})")
    for name, value in result.ap.items():
        table.add_row(name, str(result.npos[name]), f"{value:.1f}")
    table.add_section()
    table.add_row("mean", str(sum(result.npos.values())), f"{result.map:.1f}", style="bold")
    return table


def _coco_table(result: coco.COCOResult) -> Table:
    table = make_table("COCO", "IoU", "objects", "detections", "%")
    for name, row in _COCO_ROWS.items():
        table.add_row(*row, f"{getattr(result, name):.1f}", style="bold" if name == "ap" else "")
    return table


def _or_null(value: float) -> float | None:
    """JSON has no NaN, which stands for a class without ground truth."""
    return None if math.isnan(value) else value
