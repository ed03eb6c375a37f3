"""Measures CPU time and memory of VOC's AP and COCO's mAP of many images, compared with pycocotools.

    python -m benchmarks.scale.evaluation --images 1000 10000 118000 --detections 20 --out evaluation.json

Detections and ground truth are made and stored: 7 objects of 80 classes an image; of the detections half are near an
object. A measurement is a process of its own that reads them. Memory is the highest resident memory beyond that of the
imports and of the ground truth. The mAP of COCO's metric must be that of pycocotools.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report
from benchmarks.scale.arms import Limits, Result, cost_of, print_result, run_arm
from ohem.insight.suspects.detections import read_detections
from ohem.metrics import coco, voc

OBJECTS = 7
CLASSES = tuple(f"class {label}" for label in range(1, 81))
SIZE = (640, 480)
DETECTIONS, TRUTH = "detections.safetensors", "truth.npz"


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--detections", type=int, default=20, help="detections of an image")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print_result(partial(METHODS[options.method], options.folder))
        return
    table, report = Table("images", *(f"{name}{unit}" for name in METHODS for unit in (", CPU s", ", MB"))), {}
    for images in options.images:
        announce(f"{images} images")
        report[images] = row = measure_evaluation(images, options.detections, Limits())
        numbers = [row[name].get(key) for name in METHODS for key in ("seconds", "megabytes")]
        table.add_row(str(images), *("" if number is None else f"{number:.1f}" for number in numbers))
    print_table(table)
    write_report(options.out, {"evaluation": report, "detections": options.detections})


def measure_evaluation(images: int, detections: int, limits: Limits) -> dict[str, Result]:
    """Returns seconds and megabytes of each method; raises AssertionError if the mAP of COCO differ."""
    with tempfile.TemporaryDirectory() as folder:
        make_detections(Path(folder), images, detections)
        results = {}
        for method in METHODS:
            announce(f"  {method}")
            arguments = ["--method", method, "--folder", folder]
            results[method] = run_arm("evaluation", arguments, Path(folder) / "cache", limits)
    ours, theirs = (results[name].get("map") for name in ("COCO", "pycocotools"))
    assert ours is None or theirs is None or abs(ours - theirs) < 1e-9, f"mAP {ours}, and {theirs} by pycocotools"
    return results


def make_detections(folder: Path, images: int, count: int) -> None:
    """Writes `count` detections of each image, and the ground truth."""
    random = np.random.default_rng(0)
    truth = _boxes(random, OBJECTS * images)
    labels = random.integers(1, len(CLASSES) + 1, len(truth))
    near = count // 2
    of_object = np.arange(images)[:, None] * OBJECTS + random.integers(0, OBJECTS, (images, near))
    boxes = _boxes(random, count * images).reshape(images, count, 4)
    boxes[:, :near] = truth[of_object] + random.normal(0, 4, (images, near, 4)).astype(np.float32)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    detected = random.integers(1, len(CLASSES) + 1, (images, count))
    detected[:, :near] = labels[of_object]
    tensors = {
        "boxes": torch.from_numpy(boxes.reshape(-1, 4)),
        "labels": torch.from_numpy(detected.reshape(-1)),
        "scores": torch.from_numpy(random.random(images * count, np.float32)),
    }
    save_file(tensors, folder / DETECTIONS, {"counts": json.dumps([count] * images), "made_of": ""})
    np.savez(folder / TRUTH, boxes=truth, labels=labels)


def _boxes(random: np.random.Generator, count: int) -> Any:
    corners = random.random((count, 2), np.float32) * np.array([SIZE[0] - 200, SIZE[1] - 200], np.float32)
    return np.concatenate([corners, corners + 10 + 190 * random.random((count, 2), np.float32)], axis=1)


def _targets(truth: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for first in range(0, len(truth["labels"]), OBJECTS):
        yield {name: values[first : first + OBJECTS] for name, values in truth.items()}


def _read_truth(folder: Path) -> dict[str, Any]:
    with np.load(folder / TRUTH) as file:
        return dict(file)


def _by(metric: Any, folder: Path) -> Result:
    truth, scores = _read_truth(folder), Result()

    def evaluate() -> None:
        result = metric.evaluate(read_detections(folder / DETECTIONS), _targets(truth), classes=CLASSES)
        scores["map"] = result.map if metric is voc else result.ap

    return cost_of(evaluate) | scores


def _by_pycocotools(folder: Path) -> Result:
    coco_format = import_module("pycocotools.coco")
    cocoeval = import_module("pycocotools.cocoeval")
    truth, scores = _read_truth(folder), Result()

    def evaluate() -> None:
        tensors = read_detections(folder / DETECTIONS)
        dataset = coco_format.COCO()
        dataset.dataset = _as_coco(truth)
        dataset.createIndex()
        rows = [
            np.column_stack([np.full(len(one["labels"]), image), _sizes(one["boxes"]), one["scores"], one["labels"]])
            for image, one in enumerate(tensors)
        ]
        scorer = cocoeval.COCOeval(dataset, dataset.loadRes(np.concatenate(rows)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        scores["map"] = 100 * float(scorer.stats[0])

    with contextlib.redirect_stdout(sys.stderr):
        return cost_of(evaluate) | scores


def _sizes(boxes: Any) -> Any:
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _as_coco(truth: dict[str, Any]) -> dict[str, Any]:
    sizes = _sizes(truth["boxes"])
    boxes, labels, areas = sizes.tolist(), truth["labels"].tolist(), sizes[:, 2:].prod(axis=1).tolist()
    objects = [
        {
            "id": k + 1,
            "image_id": k // OBJECTS,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for k, (box, label, area) in enumerate(zip(boxes, labels, areas, strict=True))
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    images = [{"id": image} for image in range(len(labels) // OBJECTS)]
    return {"info": {}, "images": images, "annotations": objects, "categories": categories}


METHODS: dict[str, Callable[[Path], Result]] = {
    "VOC": partial(_by, voc),
    "COCO": partial(_by, coco),
    "pycocotools": _by_pycocotools,
}


if __name__ == "__main__":
    run_main(main)
