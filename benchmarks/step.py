"""Measures seconds and memory of a training step by the number of RoIs: heuristic sampling, ours and other miners.

    python -m benchmarks.step --data FOLDER:SPLIT --backbones vgg16 --rois 500 1000 2000 --out step.json --plot step.svg
    python -m benchmarks.step --data FOLDER:SPLIT --backbones resnet50 --rois 2000 --device cuda --precision bf16-mixed

Every method has its own process, and trains on the same images and RoIs from the same weights. The methods take turns,
as many as fit into memory.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.common import announce, as_recipe, make_parser, print_table, run_main, write_report
from benchmarks.rivals import RIVALS, rival
from ohem.bench.measure import measure
from ohem.bench.methods import BACKBONES, BENCH_METHODS, LISTED, method_recipe
from ohem.bench.report import rois_seen, summarise, table
from ohem.bench.worker import Make
from ohem.bench.workload import training_workload
from ohem.config.methods import replace_options
from ohem.config.schema import Precision, Recipe
from ohem.experiments.charts import check_place, line_chart, save
from ohem.inputs.datasets import training_data
from ohem.inputs.proposals import build_proposals

# All of `ohem bench`, with gradients as `ohem train` computes them by default.
OURS = tuple(method for method in BENCH_METHODS if not method.endswith("accumulate"))


def main() -> None:
    options = _options()
    if options.plot:
        check_place(options.plot)
    recipe = replace_options(
        as_recipe(options),
        data={"train": (options.data,)},
        model={"shortlist": options.shortlist},
        run={"accelerator": options.device, "precision": options.precision},
    )
    data, recipe = training_data(recipe)
    build_proposals(data, recipe.proposals)
    report: dict[str, Any] = {}
    lines: dict[str, list[list[tuple[float, float]]]] = {}
    for backbone in options.backbones:
        for count in options.rois:
            names, rounds = ", ".join(options.methods), options.warmup + options.steps
            announce(f"{backbone}, {count} RoIs, short side {options.short}, {rounds} steps each: {names}")
            results = _measure(replace_options(recipe, proposals={"top": count}), backbone, options)
            report[f"{backbone}, {count} RoIs"] = results
            title = f"{backbone}, at most {count} RoIs an image: {results['seen']['rois']:.0f}, "
            print_table(table(f"{title}{results['seen']['distinct']:.0f} of them distinct", results["methods"], {}))
            write_report(options.out, report)
            for method, values in results["methods"].items():
                if values["seconds_ratio"] is None:  # --methods without the baseline
                    continue
                point = results["seen"]["rois"], values["seconds_ratio"]["median"]
                lines.setdefault(f"{backbone}, {method}", [[]])[0].append(point)
    if options.plot:
        save(line_chart(lines, x="RoIs of an image", y="time of a step, baseline = 1"), options.plot)


def _measure(recipe: Recipe, backbone: Any, options: argparse.Namespace) -> dict[str, Any]:
    steps = options.warmup + options.steps
    folder = Path(tempfile.mkdtemp(prefix="ohem-step-"))
    makes: dict[str, Make] = {}
    for method in options.methods:
        settings = method_recipe(recipe, backbone, RIVALS[method].like if method in RIVALS else method)
        make = partial(rival, method) if method in RIVALS else training_workload
        makes[method] = partial(make, settings, folder, steps)
    measured = measure(makes, steps=options.steps, warmup=options.warmup, sequential=options.sequential)
    folder.rmdir()  # not after an error, whose message names a file in it
    return {"short": options.short, "seen": rois_seen(measured), "methods": summarise(measured)}


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), help="networks to measure")
    parser.add_argument("--methods", nargs="+", default=[*OURS, *RIVALS], choices=[*OURS, *RIVALS])
    parser.add_argument("--rois", nargs="+", type=int, default=[500, 1000, 2000, 4000], help="maximum RoIs of an image")
    parser.add_argument("--shortlist", type=int, default=LISTED, help="length of the shortlists")
    parser.add_argument("--plot", type=Path, help="chart of the ratio by the number of RoIs, .svg or .png")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each method")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each method before the measured ones")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...: as --run.accelerator")
    parser.add_argument("--precision", default="32-true", choices=get_args(Precision), help="as --run.precision")
    parser.add_argument("--sequential", action="store_true", help="measure one method after the other")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
