"""Measures images per second at test time, with distinct windows of the feature map or every RoI; also with M and B.

    python -m benchmarks.detect --data FOLDER:SPLIT --run runs/mine --out detect.json

Proposals are made and images are read before the measurement. The detections of all methods are compared.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.common import announce, as_recipe, make_parser, print_table, run_main, seconds_in_turns, write_report
from benchmarks.rivals import Plain
from ohem.config.schema import TestConfig
from ohem.data.loader import ImagePyramid, ImagePyramids
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.roi_networks import CHUNK
from ohem.evaluation.evaluate import detect_images, load_detector
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import build_examples
from ohem.models.build import as_fast_rcnn, build_refinement
from ohem.rois import RoIs

SCALES = (0.8, 1.0, 1.2)  # M: short sides, as multiples of --short


VOTING = TestConfig(iterations=2, voting=True)
TESTS = {"plain": ((1.0,), TestConfig()), "M": (SCALES, TestConfig()), "B": ((1.0,), VOTING), "M + B": (SCALES, VOTING)}


class EveryRoI(FastRCNN):
    """Our detector, but every RoI is pooled and run, also those with the same window on the feature map."""

    def distinct_parts(self, features: Tensor, rois: RoIs) -> tuple[Iterator[Tensor], Tensor]:
        pooled = self.roi_networks().pools(features, 0, self.windows(rois), CHUNK)
        return map(self.backbone.roi_head, pooled), torch.arange(len(rois))


@dataclass
class RoINetwork:
    """Numbers of RoIs and of distinct RoIs that went through the RoI network, and its seconds."""

    rois: int = 0
    distinct: int = 0
    seconds: float = 0.0


class CountedEveryRoI(EveryRoI):
    """`EveryRoI` that also counts RoIs and seconds."""

    network: RoINetwork

    def distinct_parts(self, features: Tensor, rois: RoIs) -> tuple[Iterator[Tensor], Tensor]:
        started = perf_counter()
        parts, which = super().distinct_parts(features, rois)
        made = list(parts)
        self.network.seconds += perf_counter() - started
        self.network.rois += len(rois)
        self.network.distinct += len(torch.unique(self.windows(rois), dim=0))
        return iter(made), which


METHODS: dict[str, type[FastRCNN]] = {"plain PyTorch": Plain, "every RoI": EveryRoI, "distinct": FastRCNN}


def main() -> None:
    options = _options()
    detector, recipe, _ = load_detector(options.run, accelerator="cpu")
    model = as_fast_rcnn(detector, "this benchmark")
    data = open_data([options.data], recipe.data.classes, "--data")
    examples = build_examples(data, as_recipe(options, recipe))
    columns = (
        *(f"{method}, images/s" for method in METHODS),
        *(f"gain over {method}" for method in list(METHODS)[:-1]),
    )
    table = Table("test", *columns, "highest gain", "distinct RoIs", "equal")
    report = {}
    for name in options.tests:
        scales, test = TESTS[name]
        announce(f"test {name}, at most {options.images} images")
        shorts = [round(scale * options.short) for scale in scales]
        pyramids = ImagePyramids(examples, shorts=shorts, long=round(scales[-1] * options.long))
        images = [pyramids[i] for i in range(min(options.images, len(data)))]
        model.refinement = build_refinement(test)
        methods = {name: partial(_detections, model, images, kind) for name, kind in METHODS.items()}
        expected, *others = (method() for method in methods.values())
        equal = all(_equal(expected, other) for other in others)
        share, limit = _limit(model, images)
        times = seconds_in_turns(methods, options.rounds)
        rates = [len(images) / times[method]["median"] for method in METHODS]
        gains = [rates[-1] / rate for rate in rates[:-1]]
        values = (f"{value:.2f}" for value in (*rates, *gains, limit))
        table.add_row(name, *values, f"{share:.0%}", "yes" if equal else "no")
        report[name] = times | {"images": len(images), "equal": equal, "distinct_share": share, "limit": limit}
    print_table(table)
    write_report(options.out, report)


def _detections(model: FastRCNN, images: Sequence[ImagePyramid], kind: type[FastRCNN]) -> list[dict[str, Tensor]]:
    model.__class__ = kind
    return list(detect_images(model, images))


def _limit(model: FastRCNN, images: Sequence[ImagePyramid]) -> tuple[float, float]:
    """Returns the share of distinct RoIs, and the gain in speed if the other RoIs took no time in the RoI network."""
    network = vars(model)["network"] = RoINetwork()
    started = perf_counter()
    _detections(model, images, CountedEveryRoI)
    seconds = perf_counter() - started
    share = network.distinct / max(network.rois, 1)
    return share, seconds / (seconds - network.seconds * (1 - share))


def _equal(some: Sequence[dict[str, Tensor]], others: Sequence[dict[str, Tensor]]) -> bool:
    """Returns whether detections are equal up to rounding: the order of sums depends on the size of a matrix."""
    return all(
        a["labels"].shape == b["labels"].shape
        and torch.allclose(a["scores"], b["scores"], atol=1e-5)
        and torch.allclose(a["boxes"], b["boxes"], atol=1e-2)
        for a, b in zip(some, others, strict=True)
    )


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--run", type=Path, required=True, help="a trained run")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), choices=list(TESTS), help="ways to test")
    parser.add_argument("--images", type=int, default=4, help="maximum number of images")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
