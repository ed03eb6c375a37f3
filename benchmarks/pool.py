"""Measures the RoI pooling of the read-only pass: our kernel and that of torchvision, with bitwise equal results.

    python -m benchmarks.pool --data FOLDER:SPLIT --out pool.json

The boxes are the proposals of one of the first 20 images, the one with the most proposals, scaled as for training. The
features are random, with 512 channels at stride 16 as in VGG16. Both kernels pool distinct windows; torchvision also
pools every RoI.
"""

import argparse
from functools import partial

import torch
from rich.table import Table
from torchvision.ops import roi_pool

from benchmarks.common import announce, as_recipe, make_parser, print_table, run_main, seconds_in_turns, write_report
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import build_examples
from ohem.kernels.roi_pool import roi_max_pool, roi_max_pools

STRIDE, CHANNELS, SIZE, CHUNK = 16, 512, 7, 256


def main() -> None:
    options = _options()
    recipe = as_recipe(options)
    data = open_data([options.data], (), "--data")
    examples = build_examples(data, recipe)
    announce("pooling the RoIs of an image")
    example = max((examples[i] for i in range(min(len(examples), 20))), key=lambda candidate: len(candidate.proposals))
    height, width = (-(-side // STRIDE) for side in example.image.shape[1:])
    features = torch.rand(1, CHANNELS, height, width, generator=torch.Generator().manual_seed(0))
    cells = (example.proposals / STRIDE + 0.5).floor().clamp(max=max(height, width) - 1)
    every = torch.cat([torch.zeros(len(cells), 1), cells], dim=1)
    windows = torch.unique(every, dim=0)
    expected = roi_pool(features, windows, (SIZE, SIZE))
    assert torch.equal(expected, roi_max_pool(features, windows, SIZE))
    times = seconds_in_turns(
        {
            "torchvision, every RoI": partial(roi_pool, features, every, (SIZE, SIZE)),
            "torchvision, distinct": partial(roi_pool, features, windows, (SIZE, SIZE)),
            "ours, distinct": lambda: list(roi_max_pools(features, windows, SIZE, CHUNK)),
        },
        options.rounds,
    )
    ours = times["ours, distinct"]["median"]
    table = Table("method", "seconds", "ratio to ours", title=f"{len(every)} RoIs, {len(windows)} distinct windows")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds['median']:.3f}", f"{seconds['median'] / ours:.1f}")
    print_table(table)
    write_report(options.out, {"rois": len(every), "windows": len(windows), "seconds": times})


def _options() -> argparse.Namespace:
    return make_parser(__doc__, rounds=10).parse_args()


if __name__ == "__main__":
    run_main(main)
