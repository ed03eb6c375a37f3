"""Measures the evaluation of detections by VOC's AP, next to the devkit's loops and to the AP of COCO.

    python -m benchmarks.voc_ap --out voc_ap.json

Ground truth and detections are made: as many images as the test set of VOC2007, 20 classes, 100 detections an image.
The loops, one detection after the other, are written from the description of the devkit. They run once, and must give
the same mAP.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.common import (
    announce,
    make_parser_without_data,
    print_table,
    run_main,
    seconds_in_turns,
    write_report,
)
from ohem.metrics import coco, voc

CLASSES = tuple(f"class {label}" for label in range(1, 21))
Images = list[dict[str, Any]]


def main() -> None:
    options = _options()
    announce(f"AP of {options.images} images with {options.detections} detections of {len(CLASSES)} classes")
    detections, targets = _made(options.images, options.detections)
    started = perf_counter()
    expected = _loops(detections, targets)
    loops = perf_counter() - started
    result = voc.evaluate(detections, targets, classes=CLASSES)
    assert math.isclose(expected, result.map, abs_tol=1e-6), f"mAP {result.map}, and {expected} by loops"
    methods: dict[str, Callable[[], object]] = {
        "VOC": partial(voc.evaluate, detections, targets, classes=CLASSES),
        "COCO": partial(coco.evaluate, detections, targets, classes=CLASSES),
    }
    times = seconds_in_turns(methods, options.rounds)
    times["VOC, loops"] = {"median": loops, "lowest": loops, "highest": loops}
    table = Table("AP", "seconds", "ratio to VOC", title=f"{options.images} images, mAP {result.map:.1f}")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds['median']:.2f}", f"{seconds['median'] / times['VOC']['median']:.1f}")
    print_table(table)
    write_report(options.out, {"images": options.images, "detections": options.detections, "seconds": times})


def _made(images: int, count: int) -> tuple[Images, Images]:
    """Returns detections and targets: of each object some detections are near it, the others are anywhere."""
    rng = np.random.default_rng(0)
    detections, targets = [], []
    for _ in range(images):
        boxes, labels = _boxes(rng, int(rng.integers(1, 5))), rng.integers(1, len(CLASSES) + 1, 4)
        labels = labels[: len(boxes)]
        near = rng.integers(0, len(boxes), count // 4)
        moved = boxes[near] + rng.normal(0, 8, (len(near), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        others = _boxes(rng, count - len(near))
        detections.append(
            {
                "boxes": np.concatenate([moved, others]),
                "labels": np.concatenate([labels[near], rng.integers(1, len(CLASSES) + 1, len(others))]),
                "scores": rng.random(count),
            }
        )
        targets.append({"boxes": boxes, "labels": labels, "ignore": rng.random(len(boxes)) < 0.1})
    return detections, targets


def _boxes(rng: np.random.Generator, count: int) -> Any:
    corner = rng.random((count, 2)) * 300
    return np.concatenate([corner, corner + 20 + rng.random((count, 2)) * 160], axis=1)


def _loops(detections: Images, targets: Images) -> float:
    """Returns the mAP of VOC2007 in percent, computed one detection after the other."""
    aps = []
    for label in range(1, len(CLASSES) + 1):
        truth = [(t["boxes"][t["labels"] == label], t["ignore"][t["labels"] == label]) for t in targets]
        count = sum(int((~ignore).sum()) for _, ignore in truth)
        if count:
            aps.append(_loop_of_class(detections, truth, label, count))
    return 100 * float(np.mean(aps)) if aps else math.nan


def _loop_of_class(detections: Images, truth: list[tuple[Any, Any]], label: int, count: int) -> float:
    rows = [
        (score, image, box)
        for image, detected in enumerate(detections)
        for box, score in zip(
            detected["boxes"][detected["labels"] == label], detected["scores"][detected["labels"] == label], strict=True
        )
    ]
    rows.sort(key=lambda row: -row[0])
    claimed: set[tuple[int, int]] = set()
    right, wrong = np.zeros(len(rows)), np.zeros(len(rows))
    for place, (_, image, box) in enumerate(rows):
        boxes, ignore = truth[image]
        overlaps = _ious(box, boxes)
        best = int(overlaps.argmax()) if len(overlaps) else 0
        if len(overlaps) and overlaps[best] > 0.5:
            if ignore[best]:
                continue
            is_right = (image, best) not in claimed
            claimed.add((image, best))
        else:
            is_right = False
        (right if is_right else wrong)[place] = 1
    true, false = right.cumsum(), wrong.cumsum()
    return voc.average_precision(true / count, true / np.maximum(true + false, 1))


def _ious(box: Any, boxes: Any) -> Any:
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = sides.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return shared / (areas + (box[2:] - box[:2]).prod() - shared)


def _options() -> argparse.Namespace:
    parser = make_parser_without_data(__doc__, rounds=3)
    parser.add_argument("--images", type=int, default=4952, help="number of images")
    parser.add_argument("--detections", type=int, default=100, help="detections of an image")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
