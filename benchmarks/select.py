"""Seconds of the selection alone, NMS scored with the loss and then the hardest: ours, and torchvision's NMS of all.

    python -m benchmarks.select --data FOLDER:SPLIT --out select.json

Boxes are those of real images, repeated with a little noise where more are asked for than there are; losses are
random, and smooth in space, as those of a network are.
"""

import argparse
from collections.abc import Callable

import torch
from rich.table import Table
from torch import Tensor
from torchvision.ops import batched_nms

from benchmarks.common import parser, run, seconds_in_turns, show, write
from ohem.mining import hard_rois
from ohem.training.build import build_data, build_proposals
from ohem.training.config import ProposalConfig

SIZES, KEPT, GROUPS = (1000, 2000, 4000, 10_000, 100_000), 128, (1, 2, 64)


def main() -> None:
    options = _options()
    data = build_data([options.data], (), "--data")
    found = build_proposals(data, ProposalConfig(folder=options.proposals, mode=options.mode))
    boxes = torch.cat([torch.as_tensor(found[name]).float() for name in data.ids])
    table = Table("RoIs", "groups", "torchvision, s", "ours, s", "times as fast", title=f"the hardest {KEPT}")
    report = {}
    for count in SIZES:
        for groups in GROUPS:
            times = _timed(_boxes(boxes, count), groups, options.rounds if count < 50_000 else 3)
            theirs, ours = (times[name]["median"] for name in ("torchvision", "ours"))
            report[f"{count} RoIs, {groups} groups"] = times
            table.add_row(str(count), str(groups), f"{theirs:.4f}", f"{ours:.4f}", f"{theirs / ours:.1f}")
    show(table)
    write(options.out, report)


def _boxes(boxes: Tensor, count: int) -> Tensor:
    repeated = boxes.repeat(-(-count // len(boxes)), 1)[:count]
    return repeated + torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) * (len(boxes) < count)


def _timed(boxes: Tensor, groups: int, rounds: int) -> dict[str, dict[str, float]]:
    noise = torch.Generator().manual_seed(1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    losses = (centres / 60).sin().sum(dim=1) + 0.5 * torch.rand(len(boxes), generator=noise)
    group = torch.randint(0, groups, (len(boxes),), generator=noise)
    ways: dict[str, Callable[[], Tensor]] = {
        "torchvision": lambda: batched_nms(boxes, losses, group, 0.7)[:KEPT],
        "ours": lambda: hard_rois(losses, boxes, group, KEPT),
    }
    assert ways["torchvision"]().tolist() == ways["ours"]().tolist()
    return seconds_in_turns(ways, rounds)


def _options() -> argparse.Namespace:
    return parser(__doc__, rounds=10).parse_args()


if __name__ == "__main__":
    run(main)
