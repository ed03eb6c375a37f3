"""Images a second at test time, looking at each distinct window of the feature map once, or at every RoI; with M and B.

    python -m benchmarks.detect --data FOLDER:SPLIT --run runs/mine --out detect.json

Proposals are made before; the images are read before, too. Detections with and without sharing are compared.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common import parser, run, seconds_in_turns, show, write
from benchmarks.rivals import Plain
from ohem.data.loader import Picture, Pictures
from ohem.detection.fast_rcnn import CHUNK, FastRCNN
from ohem.rois import RoIs
from ohem.training.build import build_data, build_proposals
from ohem.training.config import ProposalConfig, TestConfig
from ohem.training.detectors import as_fast_rcnn, build_refinement
from ohem.training.evaluate import detect, load_detector

SCALES = (0.8, 1.0, 1.2)  # M: short sides, in units of --short


class EveryRoI(FastRCNN):
    """Ours, but that RoIs which are alike on the feature map are each pooled and run."""

    def distinct_features(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        windows = self.windows(rois)
        hidden = [self.backbone.roi_head(pooled) for pooled in self._pooled(features, windows, CHUNK)]
        return torch.cat(hidden), torch.arange(len(rois))


@dataclass
class RoINetwork:
    """The RoIs that it was given, how many of them are distinct, and how long it took for all of them."""

    given: int = 0
    distinct: int = 0
    seconds: float = 0.0


class Watched(EveryRoI):
    """The same, and it takes notes."""

    network: RoINetwork

    def distinct_features(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        started = perf_counter()
        found = super().distinct_features(features, rois)
        self.network.seconds += perf_counter() - started
        self.network.given += len(rois)
        self.network.distinct += len(torch.unique(self.windows(rois), dim=0))
        return found


KINDS: dict[str, type[FastRCNN]] = {"plain PyTorch": Plain, "every RoI": EveryRoI, "distinct": FastRCNN}


def main() -> None:
    options = _options()
    found, recipe, _ = load_detector(options.run, accelerator="cpu")
    model = as_fast_rcnn(found, "this benchmark")
    data = build_data([options.data], recipe.data.classes, "--data")
    proposals = build_proposals(data, ProposalConfig(folder=options.proposals, mode=options.mode))
    columns = (*(f"{way}, images/s" for way in KINDS), *(f"times {way}" for way in list(KINDS)[:-1]))
    table = Table("test", *columns, "at most", "distinct", "equal")
    report = {}
    for name, scales, test in (
        ("plain", (1.0,), TestConfig()),
        ("M", SCALES, TestConfig()),
        ("B", (1.0,), TestConfig(iterations=2, voting=True)),
        ("M + B", SCALES, TestConfig(iterations=2, voting=True)),
    ):
        shorts = [round(scale * options.short) for scale in scales]
        pictures = Pictures(data, proposals, shorts=shorts, long=round(scales[-1] * options.long), top=2000)
        shown = [pictures[i] for i in range(min(options.images, len(data)))]
        model.refinement = build_refinement(test)
        ways = {way: partial(_found, model, shown, kind) for way, kind in KINDS.items()}
        expected, *others = (find() for find in ways.values())
        equal = all(_equal(expected, other) for other in others)
        share, limit = _limit(model, shown)
        times = seconds_in_turns(ways, options.rounds)
        rates = [len(shown) / times[way]["median"] for way in KINDS]
        gains = [rates[-1] / rate for rate in rates[:-1]]
        figures = (f"{value:.2f}" for value in (*rates, *gains, limit))
        table.add_row(name, *figures, f"{share:.0%}", "yes" if equal else "no")
        report[name] = times | {"images": len(shown), "equal": equal, "distinct_share": share, "limit": limit}
    show(table)
    write(options.out, report)


def _found(model: FastRCNN, shown: Sequence[Picture], kind: type[FastRCNN]) -> list[dict[str, Tensor]]:
    model.__class__ = kind
    return list(detect(model, shown))


def _limit(model: FastRCNN, shown: Sequence[Picture]) -> tuple[float, float]:
    """The share of distinct RoIs, and how many times as fast it were if the RoI network cost nothing for the others."""
    network = vars(model)["network"] = RoINetwork()
    started = perf_counter()
    _found(model, shown, Watched)
    taken = perf_counter() - started
    share = network.distinct / max(network.given, 1)
    return share, taken / (taken - network.seconds * (1 - share))


def _equal(some: Sequence[dict[str, Tensor]], others: Sequence[dict[str, Tensor]]) -> bool:
    """To within rounding: matrix products of other sizes add up in another order."""
    return all(
        a["labels"].shape == b["labels"].shape
        and torch.allclose(a["scores"], b["scores"], atol=1e-5)
        and torch.allclose(a["boxes"], b["boxes"], atol=1e-2)
        for a, b in zip(some, others, strict=True)
    )


def _options() -> argparse.Namespace:
    found = parser(__doc__, rounds=5)
    found.add_argument("--run", type=Path, required=True, help="a trained run")
    found.add_argument("--images", type=int, default=4, help="most images")
    return found.parse_args()


if __name__ == "__main__":
    run(main)
