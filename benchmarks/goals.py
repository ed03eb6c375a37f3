"""Compares the results of the other benchmarks with the goals of this project for time and memory.

    python -m benchmarks.goals runs/bench

The folder contains their JSON files, with the names that `make bench` gives them.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.common import print_table, run_main
from ohem.errors import InputError


class Goal(NamedTuple):
    """A goal and its measured value.

    Args:
        about: what is measured.
        paper: value of the paper, "" if it has none.
        goal: value to reach.
        is_minimum: whether the measured value must be at least `goal`; otherwise at most.
        measured: measured value.
        limit: best possible value, if it is known.
    """

    about: str
    paper: str
    goal: float
    is_minimum: bool
    measured: float
    limit: float | None = None

    @property
    def met(self) -> bool:
        return self.measured >= self.goal if self.is_minimum else self.measured <= self.goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the JSON files")
    table = Table("", "paper", "goal", "measured", "met", "limit")
    for row in goals(parser.parse_args().folder):
        bound = f"{'>=' if row.is_minimum else '<='} {row.goal:g}"
        limit = "" if row.limit is None else f"{row.limit:.2f}"
        table.add_row(row.about, row.paper, bound, f"{row.measured:.2f}", "yes" if row.met else "no", limit)
    print_table(table)


def goals(folder: Path) -> list[Goal]:
    """Returns all goals; those of a training step are for VGG16 and at most 2000 RoIs per image.

    Args:
        folder: folder of the JSON files of the benchmarks.

    Raises:
        InputError: a file is missing, or its benchmark had other settings.
    """
    try:
        return [*_step(_read(folder, "step")), *_rest(folder)]
    except KeyError as error:
        raise InputError(f"{folder}: the benchmarks there were not run with {error}: repeat `make bench`") from error


def _step(report: Any) -> list[Goal]:
    methods = report["vgg16, 2000 RoIs"]["methods"]
    ratio = {name: values["seconds_ratio"]["median"] for name, values in methods.items()}
    exact, rescore_top, layer = ratio["ohem"], ratio["ohem-rescore-top"], ratio["ohem-loss-layer"]
    return [
        Goal("step, OHEM exact / FRCN", "1.75", 1.35, False, exact),
        Goal("step, OHEM rescored int8 / FRCN", "", 1.20, False, rescore_top),
        Goal("step, loss layer / OHEM exact", "> 2", 2.0, True, layer / exact),
        Goal("step, loss layer / OHEM rescored int8", "", 2.4, True, layer / rescore_top),
        Goal("step, mmdetection's rule / OHEM exact", "", 1.4, True, ratio["mmdetection"] / exact),
        Goal("peak memory, OHEM / FRCN", "1.36", 1.10, False, methods["ohem"]["peak_ratio"]),
    ]


def _rest(folder: Path) -> list[Goal]:
    pool, detect = _read(folder, "pool")["seconds"], _read(folder, "detect")["plain"]
    select = _read(folder, "select")["4000 RoIs, 2 groups"]
    rates = {int(cores): rate for cores, rate in _read(folder, "propose")["images_per_second"].items()}
    cores = max(rates)
    pooling = _median(pool["torchvision, every RoI"]) / _median(pool["ours, distinct"])
    return [
        Goal("read-only RoI pooling, torchvision / ours", "", 4, True, pooling),
        Goal(
            "batched_nms and top-k / hard_rois, R = 4000, k = 128",
            "",
            4,
            True,
            _median(select["torchvision"]) / _median(select["ours"]),
        ),
        Goal(
            "detection, without / with distinct RoIs",
            "",
            1.3,
            True,
            _median(detect["every RoI"]) / _median(detect["distinct"]),
            detect["limit"],
        ),
        Goal(
            f"selective search, {cores} cores / one, in units of {cores}",
            "",
            0.8,
            True,
            rates[cores] / rates[1] / cores,
        ),
    ]


def _median(seconds: dict[str, float]) -> float:
    return seconds["median"]


def _read(folder: Path, name: str) -> Any:
    path = folder / f"{name}.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make bench OUT={folder}`")
    return json.loads(path.read_text())


if __name__ == "__main__":
    run_main(main)
