"""Measures the selection of the hardest RoIs by NMS with the loss as score: our function, and torchvision's NMS.

    python -m benchmarks.select --data FOLDER:SPLIT --out select.json

The boxes are proposals of real images. If there are too few, they are repeated with a little noise. The losses are
random and smooth in space, as those of a network. torchvision's NMS takes minutes for many boxes, so it is measured up
to `--torchvision-most`.
"""

import argparse
from collections.abc import Callable

import torch
from rich.table import Table
from torch import Tensor
from torchvision.ops import batched_nms

from benchmarks.common import announce, make_parser, print_table, run_main, seconds_in_turns, write_report
from ohem.config.schema import ProposalConfig
from ohem.inputs.datasets import open_data
from ohem.inputs.proposals import build_proposals
from ohem.mining import hard_rois

SIZES, KEPT, GROUPS = (1000, 2000, 4000, 10_000, 100_000, 1_000_000), 128, (1, 2, 64)


def main() -> None:
    options = _options()
    data = open_data([options.data], (), "--data")
    proposals = build_proposals(data, ProposalConfig(folder=options.proposals, mode=(options.mode,)))
    boxes = torch.cat([torch.as_tensor(proposals[name]).float() for name in data.ids])
    table = Table("RoIs", "groups", "torchvision, s", "ours, s", "ratio", title=f"the hardest {KEPT}")
    report = {}
    for count in options.sizes:
        for groups in GROUPS:
            announce(f"{count} boxes, {groups} groups")
            with_theirs = count <= options.torchvision_most
            times = _seconds(_boxes(boxes, count), groups, options.rounds if count < 50_000 else 3, with_theirs)
            report[f"{count} RoIs, {groups} groups"] = times
            ours = times["ours"]["median"]
            theirs = times["torchvision"]["median"] if with_theirs else None
            others = ("-", "-") if theirs is None else (f"{theirs:.4f}", f"{theirs / ours:.1f}")
            table.add_row(str(count), str(groups), others[0], f"{ours:.4f}", others[1])
    print_table(table)
    write_report(options.out, report)


def _boxes(boxes: Tensor, count: int) -> Tensor:
    repeated = boxes.repeat(-(-count // len(boxes)), 1)[:count]
    return repeated + torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) * (len(boxes) < count)


def _seconds(boxes: Tensor, groups: int, rounds: int, with_theirs: bool) -> dict[str, dict[str, float]]:
    noise = torch.Generator().manual_seed(1)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    losses = (centres / 60).sin().sum(dim=1) + 0.5 * torch.rand(len(boxes), generator=noise)
    group = torch.randint(0, groups, (len(boxes),), generator=noise)
    methods: dict[str, Callable[[], Tensor]] = {"ours": lambda: hard_rois(losses, boxes, group, KEPT)}
    if with_theirs:
        methods["torchvision"] = lambda: batched_nms(boxes, losses, group, 0.7)[:KEPT]
        assert methods["torchvision"]().tolist() == methods["ours"]().tolist()
    return seconds_in_turns(methods, rounds)


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=10)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="numbers of boxes")
    parser.add_argument(
        "--torchvision-most", type=int, default=10_000, help="highest number of boxes that torchvision's NMS gets"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
