"""Measures time and memory of writing and of opening the proposals of very many images.

    python -m benchmarks.scale.proposals --images 1000 100000 1000000 --boxes 20

The boxes are random. A measurement is a process of its own. Memory is the highest resident memory beyond that of the
imports, as Linux counts it; "read" is the time to read the boxes of a random image.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report
from benchmarks.scale.opening import highest_memory
from ohem.proposals import shards
from ohem.proposals.shards import Shards

READ = 1000
"""Number of images that are read."""


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--boxes", type=int, default=20, help="boxes of an image; selective search has about 2000")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        measure = _read if options.file.exists() else _write
        print(json.dumps(measure(options.file, options.images[0], options.boxes)))
        return
    table = Table(
        "images", "files", "writing, CPU s", "MB", "opening, CPU s", "MB", "read, ms", "one more image, CPU s"
    )
    report = {}
    for images in options.images:
        announce(f"{images} images")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "proposals.safetensors"
            write, read = (_process(path, images, options.boxes) for _ in range(2))
        report[images] = {"write": write, "read": read}
        numbers = [*write.values(), *(read[name] for name in ("opening", "megabytes", "reading", "adding"))]
        table.add_row(str(images), f"{read['files']:.0f}", *(f"{number:.2f}" for number in numbers))
    print_table(table)
    write_report(options.out, {"proposals": report})


def _process(path: Path, images: int, boxes: int) -> dict[str, float]:
    arguments = ["--images", str(images), "--boxes", str(boxes), "--file", str(path)]
    command = [sys.executable, "-m", "benchmarks.scale.proposals", *arguments]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def _write(path: Path, images: int, boxes: int) -> dict[str, float]:
    before, started = highest_memory(), process_time()
    cached: Shards | None = None
    for first in range(0, images, shards.SHARD):
        cached = _add(path, cached, range(first, min(first + shards.SHARD, images)), boxes)
    return {"writing": process_time() - started, "megabytes": highest_memory() - before}


def _add(path: Path, cached: Shards | None, numbers: range, boxes: int) -> Shards:
    corners = np.random.default_rng(numbers.start).random((len(numbers), boxes, 4)).astype(np.float32)
    corners[..., 2:] += 1 + corners[..., :2]
    digests = {f"{number:012d}": f"{number:016x}" for number in numbers}
    settings: dict[str, Any] = {"method": "random", "opencv": "none"}
    return shards.write_next(path, cached, dict(zip(digests, corners, strict=True)), digests, digests, settings)


def _read(path: Path, images: int, boxes: int) -> dict[str, float]:
    before, started = highest_memory(), process_time()
    opened = Shards(path)
    opening = process_time() - started
    started = process_time()
    for number in np.random.default_rng(0).integers(0, images, READ).tolist():
        opened[f"{number:012d}"]
    reading = 1000 * (process_time() - started) / READ
    highest, started = highest_memory() - before, process_time()
    _add(path, opened, range(images, images + 1), boxes)
    adding = process_time() - started
    return {"opening": opening, "megabytes": highest, "reading": reading, "adding": adding, "files": len(opened.files)}


if __name__ == "__main__":
    run_main(main)
