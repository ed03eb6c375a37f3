"""Measures what grows with the number of images: opening, proposals, reading, a training step, evaluation.

    python -m benchmarks.scale --images 1000 10000 118000 1000000 --out scale.json

Each part is described by `python -m benchmarks.scale.opening --help`, likewise proposals, steps and evaluation. CPU
seconds; a measurement that would need more memory or time than `--gigabytes` and `--seconds` stops, and the next one
goes on.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report
from benchmarks.scale.arms import Limits, Result
from benchmarks.scale.evaluation import measure_evaluation
from benchmarks.scale.opening import make_data, measure_opening
from benchmarks.scale.proposals import measure_proposals
from benchmarks.scale.steps import measure_steps

PARTS = ("data", "proposals", "evaluation")
# Title -> part, arm, fields of the result with their units.
ROWS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "opening, first time": ("opening", "first", {"seconds": "s", "megabytes": "MB"}),
    "opening, again": ("opening", "again", {"seconds": "s", "megabytes": "MB"}),
    "opening, pycocotools": ("opening", "pycocotools", {"seconds": "s", "megabytes": "MB"}),
    "an image with its objects": ("steps", "ohem", {"image_ms": "ms"}),
    "the same, CocoDetection": ("steps", "torchvision", {"image_ms": "ms", "megabytes": "MB"}),
    "a training example": ("steps", "ohem", {"example_ms": "ms"}),
    "a training step": ("steps", "ohem", {"step": "s"}),
    "making proposals": ("proposals", "all", {"making": "s", "making_mb": "MB"}),
    "opening proposals": ("proposals", "all", {"again": "s", "again_mb": "MB"}),
    "proposals of an image": ("proposals", "all", {"again_read_ms": "ms"}),
    "digest of proposals, first": ("proposals", "all", {"opening_digest": "s"}),
    "digest of proposals, again": ("proposals", "all", {"again_digest": "s"}),
    "AP of VOC": ("evaluation", "VOC", {"seconds": "s", "megabytes": "MB"}),
    "mAP of COCO": ("evaluation", "COCO", {"seconds": "s", "megabytes": "MB"}),
    "mAP of COCO, pycocotools": ("evaluation", "pycocotools", {"seconds": "s", "megabytes": "MB"}),
}
Report = dict[str, dict[str, Result]]
"""Part -> arm -> result."""


def main() -> None:
    options = _options()
    limits = Limits(options.gigabytes, options.seconds)
    report: dict[int, Report] = {}
    for images in options.images:
        report[images] = {}
        for part in options.parts:
            announce(f"{images} images: {part}")
            report[images] |= _measure(part, images, options, limits)
            write_report(options.out, {"images": report, "boxes": options.boxes, "detections": options.detections})
    print_table(table_of(report))


def _measure(part: str, images: int, options: argparse.Namespace, limits: Limits) -> Report:
    if part == "evaluation":
        return {"evaluation": measure_evaluation(images, options.detections, limits)}
    if part == "proposals":
        return {"proposals": {"all": measure_proposals(images, options.boxes, limits)}}
    with tempfile.TemporaryDirectory() as folder:
        path = make_data(Path(folder), images)
        return {"opening": measure_opening(path, limits), "steps": measure_steps(path, limits)}


def table_of(report: Mapping[int, Report]) -> Table:
    """Returns the measurements, with a column for each number of images."""
    table = Table("", *(f"{images:,}" for images in report))
    for title, (part, arm, fields) in ROWS.items():
        cells = [_cell(parts.get(part, {}).get(arm, {}), fields) for parts in report.values()]
        if any(cells):
            table.add_row(title, *cells)
    return table


def _cell(result: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    numbers = [f"{float(f'{result[name]:.3g}'):,.10g} {unit}" for name, unit in fields.items() if name in result]
    return ", ".join(numbers) or str(result.get("stopped", ""))


def _options() -> argparse.Namespace:
    parser = make_parser_without_data(__doc__, rounds=1)
    numbers = [1000, 10_000, 118_000, 1_000_000]
    parser.add_argument("--images", type=int, nargs="+", default=numbers, help="numbers of images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--boxes", type=int, default=20, help="proposals of an image")
    parser.add_argument("--detections", type=int, default=20, help="detections of an image")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="memory of a measurement")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU seconds of a measurement")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
