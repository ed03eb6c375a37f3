"""Seconds of the RoI pooling of the read-only pass: ours, and torchvision's kernel; the results are equal bit for bit.

    python -m benchmarks.pool --data FOLDER:SPLIT --out pool.json

Boxes are those of real images at the size that the network sees them in; the features are random, 512 channels at
stride 16, as VGG16 has. Windows that are alike are pooled once by both, and, as `every RoI`, each time by torchvision.
"""

import argparse
from functools import partial

import torch
from rich.table import Table
from torchvision.ops import roi_pool

from benchmarks.common import as_recipe, parser, run, seconds_in_turns, show, write
from ohem.detection.pooling import roi_max_pool, roi_max_pools
from ohem.training.build import build_data, build_examples, build_proposals

STRIDE, CHANNELS, SIZE, CHUNK = 16, 512, 7, 256


def main() -> None:
    options = _options()
    recipe = as_recipe(options)
    data = build_data([options.data], (), "--data")
    examples = build_examples(data, build_proposals(data, recipe.proposals), recipe)
    shown = max((examples[i] for i in range(min(len(examples), 20))), key=lambda example: len(example.proposals))
    height, width = (-(-side // STRIDE) for side in shown.image.shape[1:])
    features = torch.rand(1, CHANNELS, height, width, generator=torch.Generator().manual_seed(0))
    cells = (shown.proposals / STRIDE + 0.5).floor().clamp(max=max(height, width) - 1)
    every = torch.cat([torch.zeros(len(cells), 1), cells], dim=1)
    windows = torch.unique(every, dim=0)
    whole = roi_pool(features, windows, (SIZE, SIZE))
    assert torch.equal(whole, roi_max_pool(features, windows, SIZE))
    times = seconds_in_turns(
        {
            "torchvision, every RoI": partial(roi_pool, features, every, (SIZE, SIZE)),
            "torchvision, distinct": partial(roi_pool, features, windows, (SIZE, SIZE)),
            "ours, distinct": lambda: list(roi_max_pools(features, windows, SIZE, CHUNK)),
        },
        options.rounds,
    )
    ours = times["ours, distinct"]["median"]
    table = Table("pooling", "s", "times ours", title=f"{len(every)} RoIs, {len(windows)} distinct windows")
    for name, taken in times.items():
        table.add_row(name, f"{taken['median']:.3f}", f"{taken['median'] / ours:.1f}")
    show(table)
    write(options.out, {"rois": len(every), "windows": len(windows), "seconds": times})


def _options() -> argparse.Namespace:
    return parser(__doc__, rounds=10).parse_args()


if __name__ == "__main__":
    run(main)
