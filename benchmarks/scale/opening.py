"""Measures CPU time and memory of opening data of growing size in COCO's format, compared with pycocotools.

    python -m benchmarks.scale.opening --images 1000 10000 118000 --out opening.json

It makes the data: hard links to a few pictures, and 7.3 boxes an image, as COCO has. A measurement is a process of its
own. "First" parses the file and reads the header of every picture; "again" opens what was remembered of that, which is
only done for files of 4 MB or more. Memory is the highest resident memory beyond that of the
imports, as Linux counts it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report

BOXES = 7.3
PICTURES = 20
"""Number of different pictures; a file system allows so many links to each that more are not needed."""
LINKS = 50_000
SIZE = (640, 480)
MODULES = {"ohem": "ohem.data.sources", "pycocotools": "pycocotools.coco"}
"""Method -> what is imported before the measurement."""


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--method", choices=MODULES, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print(json.dumps(_open(options.method, options.source)))
        return
    columns = ("images", "MB of JSON", "first, CPU s", "MB", "again, CPU s", "MB", "pycocotools, CPU s", "MB")
    table, report = Table(*columns), {}
    for images in options.images:
        announce(f"{images} images")
        with tempfile.TemporaryDirectory() as folder:
            report[images] = row = _measure(Path(folder), images)
        numbers = [row[name][key] for name in ("first", "again", "pycocotools") for key in ("seconds", "megabytes")]
        table.add_row(str(images), f"{row['json']:.0f}", *(f"{number:.1f}" for number in numbers))
    print_table(table)
    write_report(options.out, {"opening": report})


def _measure(folder: Path, images: int) -> dict[str, Any]:
    path = make_data(folder, images)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    results: dict[str, Any] = {"json": path.stat().st_size / 1e6}
    for name, method in (("first", "ohem"), ("again", "ohem"), ("pycocotools", "pycocotools")):
        command = [sys.executable, "-m", "benchmarks.scale.opening", "--method", method]
        output = subprocess.run(
            [*command, "--source", f"{path}:{folder / 'images'}"], env=environment, check=True, capture_output=True
        ).stdout
        results[name] = json.loads(output.splitlines()[-1])
    return results


def make_data(folder: Path, images: int) -> Path:
    """Writes a data set of `images` images in COCO's format; returns its JSON file."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    pictures = [folder / f"{k}.jpg" for k in range(max(PICTURES, images // LINKS + 1))]
    for picture in pictures:
        Image.fromarray(random.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(picture, quality=30)
    names = [f"{i:012d}.jpg" for i in range(images)]
    for i, name in enumerate(names):
        os.link(pictures[i % len(pictures)], folder / "images" / name)
    width, height = SIZE
    of_image = random.integers(0, images, int(BOXES * images)).tolist()
    classes = random.integers(1, 81, len(of_image)).tolist()
    corners = (random.random((len(of_image), 2)) * (width - 100, height - 100)).round(2).tolist()
    sides = (10 + random.random((len(of_image), 2)) * 90).round(2).tolist()
    objects = [
        {"id": k, "image_id": image, "category_id": label, "bbox": [*corner, *side], "iscrowd": 0,
         "area": round(side[0] * side[1], 2), "segmentation": [[*corner, *side]]}
        for k, (image, label, corner, side) in enumerate(zip(of_image, classes, corners, sides, strict=True))
    ]  # fmt: skip
    entries = [{"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(names)]
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, 81)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": entries, "annotations": objects, "categories": categories}))
    return path


def _open(method: str, source: str) -> dict[str, float]:
    """Opens the data in this process; returns CPU seconds and megabytes."""
    import_module(MODULES[method])
    before, started = highest_memory(), process_time()
    data = _opened(method, source)
    seconds = process_time() - started
    assert data
    return {"seconds": seconds, "megabytes": highest_memory() - before}


def highest_memory() -> float:
    """Returns the highest resident memory of this process in megabytes; Linux alone has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _opened(method: str, source: str) -> object:
    if method == "ohem":
        return import_module(MODULES[method]).open_dataset([source])
    return import_module(MODULES[method]).COCO(source.rpartition(":")[0])


if __name__ == "__main__":
    run_main(main)
