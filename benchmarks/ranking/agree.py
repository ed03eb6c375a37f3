"""Measures the share of the RoIs that low-precision ranking chooses as float32 does, by the number of rescored RoIs.

    python -m benchmarks.ranking.agree --data FOLDER:SPLIT --run runs/mine --short 400 --long 667 --out agree.json

The run must be trained. Dropout is off, so that both passes use the same network. `--precision` can be that of a GPU: a
CPU rounds in the same way, but slowly.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common import announce, as_recipe, make_parser, print_table, run_main, seconds_in_turns, write_report
from ohem.detection.fast_rcnn import FastRCNN
from ohem.evaluation.evaluate import load_detector
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import build_examples
from ohem.kernels import low_precision
from ohem.models.build import as_fast_rcnn
from ohem.rois import RoIs, match
from ohem.samplers import OHEMSampler

RESCORED = (1, 32, 64, 96, 128, 192, 256, 512)


def main() -> None:
    options = _options()
    with torch.no_grad(), patch.object(low_precision, "suited", lambda device: options.precision):
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    detector, recipe, _ = load_detector(options.run, accelerator="cpu")
    model = as_fast_rcnn(detector, "this benchmark")
    recipe = as_recipe(options, recipe)
    data = open_data([options.data], recipe.data.classes, "--data")
    examples = build_examples(data, recipe)
    sampler = OHEMSampler(options.batch_size)
    announce(f"choosing RoIs of {min(options.images, len(data))} images in float32 and in {options.precision}")
    equal, all_chosen = dict.fromkeys(RESCORED, 0), 0
    for i in range(min(options.images, len(data))):
        example = examples[i]
        rois = match([example.proposals], [example.target], mean=model.box_mean, std=model.box_std)
        features = model.feature_map([example.image])
        exact = _chosen(model, sampler, rois, features, 0)
        all_chosen += len(exact)
        for rescore_top in RESCORED:
            equal[rescore_top] += len(exact & _chosen(model, sampler, rois, features, rescore_top))
    methods = {str(n): partial(_chosen, model, sampler, rois, features, n) for n in (0, *RESCORED)}
    times = seconds_in_turns(methods, options.rounds)
    title = f"ranked in {options.precision}"
    table = Table("rescored RoIs of an image", "chosen as in float32", "time of the pass / float32", title=title)
    for rescore_top, same in equal.items():
        ratio = times[str(rescore_top)]["median"] / times["0"]["median"]
        table.add_row(str(rescore_top), f"{same / all_chosen:.2%}", f"{ratio:.2f}")
    print_table(table)
    shares = {str(rescore_top): same / all_chosen for rescore_top, same in equal.items()}
    write_report(options.out, {"precision": options.precision, "chosen": all_chosen, "agree": shares, "seconds": times})


def _chosen(model: FastRCNN, sampler: OHEMSampler, rois: RoIs, features: Tensor, rescore_top: int) -> set[int]:
    model.rescore_top = rescore_top
    return set(sampler(rois, partial(model.read_only_losses, features, rois)).tolist())


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--run", type=Path, required=True, help="a trained run")
    parser.add_argument("--batch-size", type=int, default=64, help="number of RoIs chosen of an image")
    parser.add_argument(
        "--precision", default="int8", choices=get_args(low_precision.Precision), help="precision of the ranking"
    )
    parser.add_argument("--images", type=int, default=20, help="maximum number of images")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
