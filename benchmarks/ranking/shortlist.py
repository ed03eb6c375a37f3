"""Measures how many of the RoIs that the exact ranking chooses are chosen with a shortlist, over a training.

    python -m benchmarks.ranking.shortlist --recipe demo-ohem --data FOLDER:SPLIT --sizes 256 512 --out shortlist.json

The training is that of the recipe, with all RoIs ranked. At each step every shortlist sees its part of the same losses,
and remembers no others; the same sampler chooses among them.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from benchmarks.common import print_table, run_main, write_report
from ohem.bench.workload import training_workload
from ohem.config.methods import replace_options
from ohem.config.recipes import RECIPES
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.shortlist import Shortlist
from ohem.inputs.datasets import training_data
from ohem.rois import RoIs
from ohem.samplers import Losses

PARTS = 6
"""Number of rows of the table, parts of the training of equal length."""


class Compared(FastRCNN):
    """Ranks all RoIs, and also chooses among those of each of `shortlists`."""

    shortlists: dict[int, Shortlist]
    seen: dict[int, list[float]]
    agreement: dict[int, list[float]]

    def _to_rank(self, features: Tensor, rois: RoIs, targets: Sequence[Mapping[str, Any]]) -> tuple[RoIs, Losses]:
        values = self.read_only_losses(features, rois)
        chosen = self.sampler(rois, partial(_part, values, slice(None)))
        for size, shortlist in self.shortlists.items():
            kept, remembered = shortlist(rois, targets)
            losses = remembered(partial(_part, values, kept))
            ours = kept[self.sampler(rois[kept], losses)]
            self.seen[size].append(len(kept) / len(rois))
            self.agreement[size].append(float(_isin(chosen, ours)))
        return rois, partial(_part, values, slice(None))


def _part(values: Tensor, kept: Tensor | slice, cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
    return values[kept]


def _isin(chosen: Tensor, ours: Tensor) -> float:
    return float((chosen[:, None] == ours).any(dim=1).float().mean())


def main() -> None:
    options = _options()
    recipe = RECIPES[options.recipe].recipe
    steps = options.steps or recipe.solver.steps
    decay = recipe.solver.decay_every * steps // recipe.solver.steps
    recipe = replace_options(
        recipe,
        data={"train": (options.data,)},
        proposals={"folder": options.proposals},
        model={"weights": options.weights or recipe.model.weights},
        solver={"steps": steps, "decay_every": decay, "seed": options.seed},
    )
    _, recipe = training_data(recipe)
    with tempfile.TemporaryDirectory() as folder, training_workload(recipe, Path(folder), steps) as workload:
        model: Any = workload.trainer.detector
        model.__class__ = Compared
        model.shortlists = {size: Shortlist(size) for size in options.sizes}
        model.seen, model.agreement = ({size: [] for size in options.sizes} for _ in range(2))
        for step in range(steps):
            workload.load(step)
            workload.run()
    table = Table(
        "steps", *(f"{size}: seen, %" for size in options.sizes), *(f"{size}: same, %" for size in options.sizes)
    )
    rows = {}
    for part in range(PARTS):
        here = slice(part * steps // PARTS, (part + 1) * steps // PARTS)
        means = [[_mean(column[size][here]) for size in options.sizes] for column in (model.seen, model.agreement)]
        rows[f"{here.start}-{here.stop}"] = {"seen": means[0], "same": means[1]}
        table.add_row(f"{here.start}-{here.stop}", *(f"{100 * value:.1f}" for value in (*means[0], *means[1])))
    print_table(table)
    write_report(options.out, {"sizes": options.sizes, "steps": rows})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo-ohem", help="recipe of the training")
    parser.add_argument(
        "--data", required=True, help="data set, FOLDER:SPLIT, ANNOTATIONS.json:IMAGES or data.yaml:SPLIT"
    )
    parser.add_argument("--proposals", help="folder of the cached proposals (default: next to the data)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024], help="--model.shortlist to compare")
    parser.add_argument("--weights", help="initial weights; default: those of the recipe")
    parser.add_argument("--steps", type=int, help="steps of the training, whose decay moves; default: of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
