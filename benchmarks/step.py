"""Seconds and memory of a training step as the number of RoIs grows: heuristic sampling, ours, and other ways to mine.

    python -m benchmarks.step --data FOLDER:SPLIT --backbones vgg16 --rois 500 1000 2000 --out step.json --plot step.svg

Every arm is a process of its own and trains on the same images and RoIs from the same weights; they take turns.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import as_recipe, parser, run, show, write
from benchmarks.rivals import RIVALS, rival
from ohem.experiments.bench.arms import arm_recipe
from ohem.experiments.bench.measure import measure
from ohem.experiments.bench.report import rois_seen, summarise, table
from ohem.experiments.bench.training import training
from ohem.experiments.bench.worker import Make
from ohem.experiments.charts import check_place, line_chart, save
from ohem.training.build import build_proposals
from ohem.training.config import Recipe
from ohem.training.start import training_data
from ohem.training.variants import vary

OURS = ("frcn", "ohem", "ohem-rescored", "ohem-loss-layer")


def main() -> None:
    options = _options()
    if options.plot:
        check_place(options.plot)
    recipe = vary(as_recipe(options), data={"train": (options.data,)})
    data, recipe = training_data(recipe)
    build_proposals(data, recipe.proposals)
    report: dict[str, Any] = {}
    lines: dict[str, list[list[tuple[float, float]]]] = {}
    for backbone in options.backbones:
        for count in options.rois:
            found = _measured(vary(recipe, proposals={"top": count}), backbone, options)
            report[f"{backbone}, {count} RoIs"] = found
            title = f"{backbone}, at most {count} RoIs an image: {found['seen']['rois']:.0f}, "
            show(table(f"{title}{found['seen']['distinct']:.0f} of them distinct", found["arms"], {}))
            write(options.out, report)
            for arm, figures in found["arms"].items():
                if figures["seconds_ratio"] is None:  # --arms without the baseline
                    continue
                point = found["seen"]["rois"], figures["seconds_ratio"]["median"]
                lines.setdefault(f"{backbone}, {arm}", [[]])[0].append(point)
    if options.plot:
        save(line_chart(lines, x="RoIs of an image", y="time of a step, baseline = 1"), options.plot)


def _measured(recipe: Recipe, backbone: Any, options: argparse.Namespace) -> dict[str, Any]:
    steps = options.warmup + options.steps
    folder = Path(tempfile.mkdtemp(prefix="ohem-step-"))
    makes: dict[str, Make] = {}
    for arm in options.arms:
        settings = arm_recipe(recipe, backbone, RIVALS[arm].like if arm in RIVALS else arm)
        make = partial(rival, arm) if arm in RIVALS else training
        makes[arm] = partial(make, settings, folder, steps)
    found = measure(makes, steps=options.steps, warmup=options.warmup, apart=options.apart)
    return {"seen": rois_seen(found), "arms": summarise(found)}


def _options() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--backbones", nargs="+", default=["vgg16", "vgg_cnn_m_1024", "squeezenet1_0"])
    found.add_argument("--arms", nargs="+", default=[*OURS, *RIVALS], choices=[*OURS, *RIVALS])
    found.add_argument("--rois", nargs="+", type=int, default=[500, 1000, 2000, 4000], help="most RoIs of an image")
    found.add_argument("--plot", type=Path, help="a chart of the ratio by the number of RoIs, .svg or .png")
    found.add_argument("--steps", type=int, default=5)
    found.add_argument("--warmup", type=int, default=1)
    found.add_argument("--apart", action="store_true", help="one arm after the other, if memory does not hold all")
    return found.parse_args()


if __name__ == "__main__":
    run(main)
