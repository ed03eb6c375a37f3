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
import tempfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report
from benchmarks.scale.arms import Limits, Result, cost_of, print_result, run_arm

BOXES = 7.3
PICTURES = 20
"""Number of different pictures; a file system allows so many links to each that more are not needed."""
LINKS = 50_000
SIZE = (640, 480)
CLASSES = 80
MODULES = {"ohem": "ohem.data.sources", "pycocotools": "pycocotools.coco"}
"""Method -> what is imported before the measurement."""


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--method", choices=MODULES, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print_result(lambda: _open(options.method, options.source))
        return
    columns = ("images", "MB of JSON", "first, CPU s", "MB", "again, CPU s", "MB", "pycocotools, CPU s", "MB")
    table, report = Table(*columns), {}
    for images in options.images:
        announce(f"{images} images")
        with tempfile.TemporaryDirectory() as folder:
            path = make_data(Path(folder), images)
            report[images] = row = measure_opening(path, Limits())
            size = path.stat().st_size / 1e6
        numbers = [row[name].get(key) for name in row for key in ("seconds", "megabytes")]
        table.add_row(str(images), f"{size:.0f}", *("" if number is None else f"{number:.1f}" for number in numbers))
    print_table(table)
    write_report(options.out, {"opening": report})


def measure_opening(path: Path, limits: Limits) -> dict[str, Result]:
    """Returns seconds and megabytes of opening the data that `make_data` wrote."""
    results, source = {}, f"{path}:{path.parent / 'images'}"
    for name, method in (("first", "ohem"), ("again", "ohem"), ("pycocotools", "pycocotools")):
        arguments = ["--method", method, "--source", source]
        results[name] = run_arm("opening", arguments, path.parent / "cache", limits)
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
    entries = ({"id": i, "file_name": name, "width": width, "height": height} for i, name in enumerate(names))
    categories = ({"id": label, "name": f"class {label}"} for label in range(1, CLASSES + 1))
    path = folder / "instances.json"
    with path.open("w") as file:
        _write_list(file, '{"images": [', entries)
        _write_list(file, '], "categories": [', categories)
        _write_list(file, '], "annotations": [', _objects(random, images))
        file.write("]}")
    return path


def _write_list(file: TextIO, start: str, entries: Iterable[dict[str, Any]]) -> None:
    file.write(start)
    for number, entry in enumerate(entries):
        file.write(", " * (number > 0) + json.dumps(entry))


def _objects(random: np.random.Generator, images: int) -> Iterator[dict[str, Any]]:
    of_image = random.integers(0, images, int(BOXES * images))
    classes = random.integers(1, CLASSES + 1, len(of_image))
    corners = (random.random((len(of_image), 2)) * (SIZE[0] - 100, SIZE[1] - 100)).round(2)
    sides = (10 + random.random((len(of_image), 2)) * 90).round(2)
    for k in range(len(of_image)):
        corner, side = corners[k].tolist(), sides[k].tolist()
        yield {
            "id": k, "image_id": int(of_image[k]), "category_id": int(classes[k]), "bbox": [*corner, *side],
            "iscrowd": 0, "area": round(side[0] * side[1], 2), "segmentation": [[*corner, *side]],
        }  # fmt: skip


def _open(method: str, source: str) -> Result:
    """Opens the data in this process."""
    import_module(MODULES[method])
    return cost_of(lambda: _opened(method, source))


def _opened(method: str, source: str) -> object:
    if method == "ohem":
        return import_module(MODULES[method]).open_dataset([source])
    return import_module(MODULES[method]).COCO(source.rpartition(":")[0])


if __name__ == "__main__":
    run_main(main)
