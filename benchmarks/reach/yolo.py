"""Trains a YOLO of ultralytics with and without mining, with several seeds, and prints mAP, false positives and time.

    pip install ultralytics
    python -m benchmarks.reach.yolo runs/yolo --data FOLDER:trainval --test FOLDER:test --epochs 20 --imgsz 320

The data may be of any format that `ohem train` reads; they are copied into YOLO layout below the folder of the
results. The network begins with random weights, or those of `--weights FILE.pt`. Every training has the same schedule
and augmentation; every mini-batch is a step of the optimiser (`nbs`), since small data have few of them. Horizontal
flips are off with `--no-flip`. Detections are scored as `ohem eval` does. Repeat the
command to resume it: a training that has its results is not done again.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common import print_table, run_main
from ohem import OHEMSampler, RatioSampler, RoISampler, with_ohem
from ohem.config.schema import MetricName
from ohem.data.dataset import DetectionSet
from ohem.data.sources import open_dataset
from ohem.evaluation.score_report import score
from ohem.experiments.significance import mean_of, paired
from ohem.io.json_files import write_json

METHODS: dict[str, Callable[[], RoISampler] | None] = {
    "ultralytics": None,
    "ratio": lambda: RatioSampler(3, min_negatives=64),
    "ratio-10": lambda: RatioSampler(10, min_negatives=64),
    "ohem-128": lambda: OHEMSampler(128, nms_iou=None),
    "ohem-512": lambda: OHEMSampler(512, nms_iou=None),
}
"""Name -> the sampler; None trains as ultralytics does."""
METRIC: MetricName = "voc07"
LOWEST_SCORE = 0.001
FIGURES = ("map", "false_positives_per_image", "seconds")


def main() -> None:
    options = _options()
    train, test = open_dataset([options.data]), open_dataset([options.test])
    yaml = write_yolo(train, options.out / "data")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.methods}
    for seed in range(options.seeds):
        for name in options.methods:
            results[name].append(_result(options, name, seed, yaml, test))
    _print(results)


def write_yolo(data: DetectionSet, folder: Path) -> Path:
    """Copies images and boxes into YOLO layout; returns data.yaml. A folder that is complete stays as it is."""
    yaml = folder / "data.yaml"
    if yaml.exists():
        return yaml
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(len(data)):
        source, target = data.path(index), data.target(index)
        height, width = data.size(index)
        corners = target["boxes"] / torch.tensor([width, height, width, height])
        centres = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        rows = [
            f"{label - 1} " + " ".join(f"{value:.6f}" for value in box)
            for label, box in zip(target["labels"].tolist(), centres.tolist(), strict=True)
        ]
        shutil.copy(source, folder / "images" / f"{index:06d}{source.suffix}")
        (folder / "labels" / f"{index:06d}.txt").write_text("".join(f"{row}\n" for row in rows))
    content = {"path": str(folder.resolve()), "train": "images", "val": "images", "names": list(data.classes)}
    yaml.write_text(json.dumps(content))  # JSON is YAML
    return yaml


def _result(options: argparse.Namespace, name: str, seed: int, yaml: Path, test: DetectionSet) -> dict[str, Any]:
    """Returns the figures of one training, which is done if it has none yet."""
    folder = options.out / f"{name}-{seed}"
    path = folder / "result.json"
    if not path.exists():
        model = _trained(options, name, seed, yaml, folder)
        figures, _ = score([_detections(model, test.path(i), options.imgsz) for i in range(len(test))], test, METRIC)
        write_json(path, {**{key: figures[key] for key in FIGURES[:2]}, "seconds": _seconds_of_epoch(folder)})
    result: dict[str, Any] = json.loads(path.read_text())
    print(f"{name}, seed {seed}: {result}", flush=True)
    return result


def _trained(options: argparse.Namespace, name: str, seed: int, yaml: Path, folder: Path) -> Any:
    from ultralytics import YOLO

    model = YOLO(options.weights or options.model)
    sampler = METHODS[name]
    if sampler is not None:
        model = with_ohem(model, sampler())
    flips = {} if options.flip else {"fliplr": 0.0}
    model.train(
        data=str(yaml), epochs=options.epochs, imgsz=options.imgsz, batch=options.batch, nbs=options.batch, seed=seed,
        val=False, device="cpu", workers=0, plots=False, verbose=False, amp=False, exist_ok=True,
        project=str(folder.parent.resolve()), name=folder.name, **flips,
    )  # fmt: skip
    return YOLO(folder / "weights" / "last.pt")


def _detections(model: Any, image: Path, size: int) -> dict[str, Tensor]:
    (result,) = model.predict(str(image), imgsz=size, conf=LOWEST_SCORE, device="cpu", verbose=False)
    boxes = result.boxes
    return {"boxes": boxes.xyxy.cpu(), "scores": boxes.conf.cpu(), "labels": boxes.cls.cpu().long() + 1}


def _seconds_of_epoch(folder: Path) -> float:
    """Returns the median seconds of an epoch."""
    with (folder / "results.csv").open(newline="") as file:
        times = [0.0, *(float(row["time"]) for row in csv.DictReader(file, skipinitialspace=True))]
    return median(b - a for a, b in pairwise(times))


def _print(results: dict[str, list[dict[str, Any]]]) -> None:
    base, *_ = results
    table = Table("method", "mAP", "gain", "95 % interval", "FP per image at 80 % recall", "s/epoch")
    for name, runs in results.items():
        maps, firsts = ([run["map"] for run in of] for of in (runs, results[base]))
        gain = paired(maps, firsts)
        interval = f"{gain.low:+.1f} to {gain.high:+.1f}" if name != base and gain.n > 1 else ""
        positives = [run["false_positives_per_image"] for run in runs]
        false = f"{mean_of(positives).mean:.2f}" if None not in positives else "recall not reached"
        seconds = median(run["seconds"] for run in runs)
        table.add_row(name, str(mean_of(maps)), f"{gain.mean:+.1f}" * (name != base), interval, false, f"{seconds:.1f}")
    print_table(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the trainings")
    parser.add_argument("--data", required=True, help="training data, a source of `ohem train`")
    parser.add_argument("--test", required=True, help="test data")
    parser.add_argument("--model", default="yolo11n.yaml", help="architecture, with random weights")
    parser.add_argument("--weights", help="file of weights to begin with")
    parser.add_argument("--methods", nargs="+", default=["ultralytics", "ratio", "ohem-512"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="mirror no image, instead of half of them")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
