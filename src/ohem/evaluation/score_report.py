"""Scores of detections: numbers for RUN/eval.json, and a table."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.table import Table
from torch import Tensor

from ohem.config.schema import MetricName
from ohem.data.dataset import DetectionSet
from ohem.data.voc import VOCDetection
from ohem.io.console import make_table
from ohem.metrics import coco, voc
from ohem.metrics.false_positives import RECALL, background_shares, false_positives_per_image


def usual_metric(data: DetectionSet) -> MetricName:
    """Returns the metric that the data's format is scored by elsewhere: that of VOC, or that of COCO."""
    return "voc07" if isinstance(data, VOCDetection) else "coco"


def score(
    detections: Sequence[dict[str, Tensor]], data: DetectionSet, metric: MetricName
) -> tuple[dict[str, Any], Table]:
    """Scores the detections in the images of `data`.

    The metrics of VOC count crowds as `difficult` objects, those of COCO count `difficult` objects as crowds.

    Returns:
        `metric`, `map`, `ap` of each class, `false_positives_per_image`, `background_share` of each class and more, and
        a table.
    """
    targets = partial(map, data.target, range(len(data)))  # all at a time would take 1.3 kB an image
    false_positives = false_positives_per_image(detections, targets(), classes=len(data.classes))
    if metric == "coco":
        result = coco.evaluate(detections, targets(), classes=data.classes)
        others = {name: _or_null(getattr(result, name)) for name in coco.FIGURES if name != "ap"}
        report, table = _report(metric, result.ap, result.per_class) | others, _coco_table(result)
    else:
        voc_result = voc.evaluate(detections, targets(), metric=metric, classes=data.classes)
        report, table = _report(metric, voc_result.map, voc_result.ap), _voc_table(voc_result)
    caption = f"false positives per image at {RECALL:.0%} recall: {_count(false_positives)}"
    table.caption, table.min_width = caption, len(caption)  # on one line
    shares = background_shares(detections, targets(), classes=len(data.classes))
    report["background_share"] = {name: _or_null(share) for name, share in zip(data.classes, shares, strict=True)}
    return report | {"false_positives_per_image": _or_null(false_positives)}, table


def _report(metric: MetricName, mean: float, per_class: dict[str, float]) -> dict[str, Any]:
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
    for name, figure in coco.FIGURES.items():
        table.add_row(*figure[1:], f"{getattr(result, name):.1f}", style="bold" if name == "ap" else "")
    return table


def _count(false_positives: float) -> str:
    if math.isinf(false_positives):
        return "this recall is not reached"
    return "no object" if math.isnan(false_positives) else f"{false_positives:.2f}"


def _or_null(value: float) -> float | None:
    """Returns None where JSON has no number: NaN of a class without ground truth, or a recall that is not reached."""
    return value if math.isfinite(value) else None
