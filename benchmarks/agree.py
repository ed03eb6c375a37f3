"""How many of the RoIs that are chosen with coarse ranking are those chosen in float32, by how many are rescored.

    python -m benchmarks.agree --data FOLDER:SPLIT --run runs/mine --short 400 --long 667 --out agree.json

The run is a trained one; dropout is off, so that both passes see the same network. `--precision` takes what a GPU would
rank in; a CPU rounds alike, if slowly.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common import as_recipe, parser, run, seconds_in_turns, show, write
from ohem.detection import coarse
from ohem.detection.fast_rcnn import FastRCNN
from ohem.rois import RoIs, match
from ohem.samplers import OHEMSampler
from ohem.training.build import build_data, build_examples, build_proposals
from ohem.training.detectors import as_fast_rcnn
from ohem.training.evaluate import load_detector

RESCORED = (1, 32, 64, 96, 128, 192, 256, 512)


def main() -> None:
    options = _options()
    with torch.no_grad(), patch.object(coarse, "suited", lambda device: options.precision):
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    found, recipe, _ = load_detector(options.run, accelerator="cpu")
    model = as_fast_rcnn(found, "this benchmark")
    recipe = as_recipe(options, recipe)
    data = build_data([options.data], recipe.data.classes, "--data")
    examples = build_examples(data, build_proposals(data, recipe.proposals), recipe)
    sampler = OHEMSampler(options.batch_size)
    equal, all_chosen = dict.fromkeys(RESCORED, 0), 0
    for i in range(min(options.images, len(data))):
        example = examples[i]
        rois = match([example.proposals], [example.target], mean=model.box_mean, std=model.box_std)
        features = model.backbone([example.image])
        exact = _chosen(model, sampler, rois, features, 0)
        all_chosen += len(exact)
        for rescored in RESCORED:
            equal[rescored] += len(exact & _chosen(model, sampler, rois, features, rescored))
    ways = {str(n): partial(_chosen, model, sampler, rois, features, n) for n in (0, *RESCORED)}
    times = seconds_in_turns(ways, options.rounds)
    title = f"ranked in {options.precision}"
    table = Table("rescored of an image", "chosen as in float32", "time of the pass, of that in float32", title=title)
    for rescored, same in equal.items():
        ratio = times[str(rescored)]["median"] / times["0"]["median"]
        table.add_row(str(rescored), f"{same / all_chosen:.2%}", f"{ratio:.2f}")
    show(table)
    shares = {str(rescored): same / all_chosen for rescored, same in equal.items()}
    write(options.out, {"precision": options.precision, "chosen": all_chosen, "agree": shares, "seconds": times})


def _chosen(model: FastRCNN, sampler: OHEMSampler, rois: RoIs, features: Tensor, rescored: int) -> set[int]:
    model.rescored = rescored
    return set(sampler(rois, partial(model.read_only_losses, features, rois)).tolist())


def _options() -> argparse.Namespace:
    found = parser(__doc__, rounds=3)
    found.add_argument("--run", type=Path, required=True, help="a trained run")
    found.add_argument("--batch-size", type=int, default=64, help="RoIs chosen of an image")
    found.add_argument("--precision", default="int8", choices=get_args(coarse.Precision))
    found.add_argument("--images", type=int, default=20, help="most images")
    return found.parse_args()


if __name__ == "__main__":
    run(main)
