"""The metrics of COCO's own program, pycocotools, to compare ours with."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ohem.metrics.coco import FIGURES


def official(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], list[float]]:
    """Returns the twelve figures and the AP of each category in percent, for data in COCO's format."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = {"info": {}, **truth}
        dataset.createIndex()
        scorer = COCOeval(dataset, _load(dataset, results), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    precision = scorer.eval["precision"][..., 0, 2]
    per_class = [precision[..., i][precision[..., i] > -1] for i in range(precision.shape[2])]
    return (
        {name: _percent(value) for name, value in zip(FIGURES, scorer.stats, strict=True)},
        [_percent(values.mean()) if values.size else math.nan for values in per_class],
    )


def _load(dataset: COCO, results: Sequence[Mapping[str, Any]]) -> COCO:
    if results:
        return dataset.loadRes(list(results))
    empty = COCO()  # loadRes cannot read an empty list
    empty.dataset = {**dataset.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _percent(value: float) -> float:
    return 100 * value if value >= 0 else math.nan
