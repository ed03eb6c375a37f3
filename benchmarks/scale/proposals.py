"""Measures time and memory of making and of opening the proposals of very many images.

    python -m benchmarks.scale.proposals --images 1000 100000 1000000 --boxes 20

The pictures are hard links to a few small ones, the boxes are random; the rest is what `ohem propose` and a training
do: digests of the pictures, unfinished parts, files of 4096 images, the place of each image. A measurement is a process
of its own. Memory is the highest resident memory beyond that of the imports and of the names of the images, as Linux
counts it; "read" is the time to read the boxes of a random image, "digest" that of all proposals at the start of a
training.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import process_time, thread_time
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report
from benchmarks.scale.arms import Limits, Result, highest_memory, print_result, run_arm
from ohem.config.schema import ProposalConfig
from ohem.data.dataset import DetectionSet, Source
from ohem.inputs.proposals import build_proposals
from ohem.proposals import generate
from ohem.training.fingerprints import digest_of_proposals

READ = 1000
"""Number of images that are read."""
SIZE = (64, 48)
LINKS = 50_000
"""Links to a picture; a file system allows 65,000."""
TOP = 2000


class ManyImages:
    """What `build_proposals` uses of a data set of `count` images."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.ids = [f"COCO_train_{i:011d}" for i in range(count)]
        self.sources = [Source("many", folder, "many", tuple(self.ids))]

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, index: int) -> Path:
        """Returns the picture of an image."""
        return self.folder / "images" / f"{self.ids[index]}.jpg"

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width; they differ, as those of photographs do."""
        return SIZE[1] + index % 1000, SIZE[0] + index % 1001


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--boxes", type=int, default=20, help="boxes of an image; selective search has about 2000")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print_result(lambda: _measure(options.folder, options.images[0], options.boxes))
        return
    titles = ("making, CPU s", "MB", "opening", "MB", "again", "MB", "read, ms", "digest", "again", "one more")
    table, report = Table("images", "files", *titles), dict[int, Result]()
    for images in options.images:
        announce(f"proposals of {images} images")
        report[images] = row = measure_proposals(images, options.boxes, Limits(seconds=3600))
        numbers = (row.get(key) for key in ("files", *COLUMNS))
        table.add_row(str(images), *("" if number is None else f"{number:.2f}" for number in numbers))
    print_table(table)
    write_report(options.out, {"proposals": report})


COLUMNS = (
    *("making", "making_mb", "opening", "opening_mb", "again", "again_mb"),
    *("again_read_ms", "opening_digest", "again_digest", "adding"),
)


def measure_proposals(images: int, boxes: int, limits: Limits) -> Result:
    """Returns CPU seconds and megabytes of making and of opening the proposals of so many images."""
    row: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        _link(Path(folder), images + 1)
        # Digests are remembered from "opening" on.
        for name, count in (("making", images), ("opening", images), ("again", images), ("adding", images + 1)):
            arguments = ["--images", count, "--boxes", boxes, "--folder", folder]
            result = run_arm("proposals", arguments, Path(folder) / "cache", limits)
            if "stopped" in result:
                return row | result
            row |= {f"{name}{key}": value for key, value in result.items()}
        return row | {"files": len(list(Path(folder).rglob("*.safetensors")))}


def _link(folder: Path, images: int) -> None:
    data = ManyImages(folder, images)
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(images):
        if i % LINKS == 0:
            picture = folder / f"{i}.jpg"
            Image.fromarray(random.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(picture)
        os.link(picture, data.path(i))


def _measure(folder: Path, images: int, boxes: int) -> Result:
    """Makes what proposals are missing, and opens them; where there were some already, measures also reading."""
    there = (folder / generate.FOLDER).exists()
    data = cast(DetectionSet, ManyImages(folder, images))
    before, started = highest_memory(), process_time()
    with patch.object(generate, "results_of", partial(_results_at_once, boxes)):  # no picture is searched
        proposals = build_proposals(data, ProposalConfig())
    result = {"": process_time() - started, "_mb": highest_memory() - before}
    if not there:
        return result
    started = thread_time()
    for index in np.random.default_rng(0).integers(0, images, READ).tolist():
        proposals[data.ids[index]]
    result["_read_ms"] = 1000 * (thread_time() - started) / READ
    started = thread_time()
    digest_of_proposals(data.ids, proposals, TOP)
    return result | {"_digest": thread_time() - started}


@contextmanager
def _results_at_once(boxes: int, todo: Mapping[str, Path], *_: Any) -> Iterator[Iterator[tuple[str, Any]]]:
    random = np.random.default_rng(len(todo))
    corners = random.integers(0, SIZE[1] // 2, (len(todo), boxes, 4)).astype(np.float32)
    corners[..., 2:] += 1 + corners[..., :2]
    yield iter(zip(todo, corners, strict=True))


if __name__ == "__main__":
    run_main(main)
