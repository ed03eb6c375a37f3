"""Measures reading an image and a training step in data of growing size, compared with torchvision's CocoDetection.

    python -m benchmarks.scale.steps --images 1000 10000 118000 --out steps.json

The data are those of `benchmarks.scale.opening`. Both read the same pictures: "ms" is the median CPU time of an image
with its annotations as tensors, in random order; MB the highest resident memory of opening the data and reading. An
example is resized, with 500 random proposals; a step is that of `ohem train` with SqueezeNet and one image.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torchvision.datasets import CocoDetection
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.common import announce, make_parser_without_data, print_table, run_main, write_report
from benchmarks.scale.arms import Limits, Result, highest_memory, print_result, run_arm
from benchmarks.scale.opening import SIZE, make_data
from ohem.bench.methods import method_recipe
from ohem.bench.workload import Training
from ohem.config.methods import replace_options
from ohem.config.schema import Recipe
from ohem.data.loader import Examples, TrainingExamples
from ohem.data.sources import open_dataset
from ohem.training.distributed import launched
from ohem.training.loop import Trainer

READ = 50
"""Number of images that are read, of each kind."""
STEPS = 5
PROPOSALS = 500
SHORT, LONG = 240, 320
METHODS = ("ohem", "torchvision")


class RandomProposals(Mapping[str, Any]):
    """Random boxes of each of `names`."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __getitem__(self, name: str) -> Any:
        random = np.random.default_rng(int(name))
        corners = random.random((PROPOSALS, 2)) * (SIZE[0] - 200, SIZE[1] - 200)
        return np.concatenate([corners, corners + 20 + 180 * random.random((PROPOSALS, 2))], axis=1).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=1)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        print_result(lambda: (_of_ohem if options.method == "ohem" else _of_torchvision)(options.file))
        return
    table = Table("images", "image, ms", "MB", "CocoDetection, ms", "MB", "example, ms", "step, CPU s", "first, s")
    report = {}
    for images in options.images:
        announce(f"{images} images")
        with tempfile.TemporaryDirectory() as folder:
            report[images] = row = measure_steps(make_data(Path(folder), images), Limits())
        ours, theirs = row["ohem"], row["torchvision"]
        numbers = [*(one.get(key) for one in (ours, theirs) for key in ("image_ms", "megabytes"))]
        numbers += [ours.get(key) for key in ("example_ms", "step", "first_step")]
        table.add_row(str(images), *("" if number is None else f"{number:.2f}" for number in numbers))
    print_table(table)
    write_report(options.out, {"steps": report})


def measure_steps(path: Path, limits: Limits) -> dict[str, Result]:
    """Returns the results of both methods on the data that `make_data` wrote."""
    return {
        method: run_arm("steps", ["--method", method, "--file", path], path.parent / "cache", limits)
        for method in METHODS
    }


def _of_ohem(path: Path) -> Result:
    before = highest_memory()
    data = open_dataset([f"{path}:{path.parent / 'images'}"])
    result = {"image_ms": _median_ms(data, len(data)), "megabytes": highest_memory() - before}
    options = {"short": SHORT, "long": LONG, "classes": data.classes}
    recipe = method_recipe(replace_options(Recipe(), data=options, solver={"images": 1}), "squeezenet1_0", "ohem")
    examples = Examples(data, RandomProposals(data.ids), short=SHORT, long=LONG, top=PROPOSALS)
    sequence = TrainingExamples(examples, seed=0, flips=True)
    result["first_order"] = _seconds(lambda: sequence[0])
    result["example_ms"] = 1000 * median(_seconds(partial(sequence.__getitem__, place)) for place in range(1, READ))
    with launched(recipe.run) as fabric, tempfile.TemporaryDirectory() as folder:
        training = Training(Trainer(recipe, Path(folder), examples, fabric), STEPS + 1)
        times = [_seconds(partial(_step, training, step)) for step in range(STEPS + 1)]
    return result | {"first_step": times[0], "step": median(times[1:])}


def _step(training: Training, step: int) -> None:
    training.load(step)
    training.run()


def _of_torchvision(path: Path) -> Result:
    before = highest_memory()
    data = CocoDetection(str(path.parent / "images"), str(path), transform=pil_to_tensor, target_transform=_as_tensors)
    return {"image_ms": _median_ms(data, len(data)), "megabytes": highest_memory() - before}


def _as_tensors(objects: list[dict[str, Any]]) -> dict[str, Any]:
    boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([one["category_id"] for one in objects], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "ignore": torch.tensor([bool(one["iscrowd"]) for one in objects])}


def _median_ms(data: Any, count: int) -> float:
    places = np.random.default_rng(0).integers(0, count, READ).tolist()
    return 1000 * median(_seconds(partial(data.__getitem__, place)) for place in places)


def _seconds(action: Any) -> float:
    # Where the CPU time of a process is limited, Linux counts it in steps of 4 ms, but not that of a thread.
    started = thread_time()
    action()
    return thread_time() - started


if __name__ == "__main__":
    run_main(main)
