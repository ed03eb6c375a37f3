"""Measures the parts of detecting objects in a picture, as `ohem detect` does: how much of it is selective search.

    python -m benchmarks.picture --data FOLDER:SPLIT --run runs/mine --out picture.json

The pictures are the first of the data set, after one that is not measured.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from rich.table import Table

from benchmarks.common import announce, as_recipe, make_parser, print_table, run_main, write_report
from ohem.config.schema import Recipe
from ohem.data.loader import make_pyramid
from ohem.data.transforms import read_image
from ohem.detection.detector import Detector
from ohem.errors import InputError
from ohem.evaluation.detect import as_bgr, draw_confident, save_picture
from ohem.evaluation.evaluate import detect_images, load_detector
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import sizes_to_test
from ohem.inputs.proposals import methods_of
from ohem.proposals.methods import MethodUnion

SEARCH = "selective search"
SCORE = 0.3


class Parts(defaultdict[str, float]):
    """Seconds of each part."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self[name] += perf_counter() - started


def main() -> None:
    options = _options()
    model, recipe, _ = load_detector(options.run, accelerator="cpu")
    recipe = as_recipe(options, recipe)
    data = open_data([options.data], recipe.data.classes, "--data", annotated=False)
    paths = [data.path(index) for index in range(min(options.images, len(data)))]
    if not paths:
        raise InputError("there is no picture to measure: give --images 1 or more")
    announce(f"detecting in {len(paths)} pictures at short side {options.short}, after one of warm-up")
    with tempfile.TemporaryDirectory() as folder:
        detect = partial(_detect, model, recipe, out=Path(folder) / "picture.jpg")
        detect(paths[0], Parts(float))
        parts = Parts(float)
        for path in paths:
            detect(path, parts)
    total = sum(parts.values())
    table = Table("part", "seconds a picture", "share", title=f"ohem detect, {len(paths)} pictures")
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds / len(paths):.3f}", f"{seconds / total:.0%}")
    table.add_row("all", f"{total / len(paths):.3f}", "100%")
    print_table(table)
    print(f"{parts[SEARCH] / total:.0%} of the time of a picture is selective search ({options.mode}).")
    means = {name: seconds / len(paths) for name, seconds in parts.items()}
    write_report(options.out, {"pictures": len(paths), "seconds": means, "search_share": parts[SEARCH] / total})


def _detect(model: Detector, recipe: Recipe, path: Path, parts: Parts, out: Path) -> None:
    with parts.timed("reading"):
        image = read_image(path)
    with parts.timed(SEARCH):
        boxes = MethodUnion(methods_of(recipe.proposals), recipe.proposals.top)(as_bgr(image))
    with parts.timed("network"):
        shorts, long = sizes_to_test(recipe)
        (detections,) = detect_images(model, [make_pyramid(path.name, image, boxes, shorts=shorts, long=long)])
    with parts.timed("drawing and writing"):
        save_picture(draw_confident(image, detections, recipe.data.classes, SCORE), out)


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a trained run")
    parser.add_argument("--images", type=int, default=8, help="maximum number of pictures")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
