"""Compares the results of the other benchmarks with the goals of this project for time and memory.

    python -m benchmarks.goals runs/bench

The folder contains their JSON files, with the names that `make bench` gives them. A sentence is printed for each file
that is missing, and the exit status is then 2.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks.common import print_table, run_main
from ohem.errors import InputError

FULL_STEP = "vgg16, 2000 RoIs", 600
"""Report and short side that the goals of a step are for."""


class Goal(NamedTuple):
    """A goal and its measured value.

    Args:
        about: what is measured.
        paper: value of the paper, "" if it has none.
        goal: value to reach; None if there is none.
        is_minimum: whether the measured value must be at least `goal`; otherwise at most.
        measured: measured value.
        limit: best possible value, if it is known.
    """

    about: str
    paper: str
    goal: float | None
    is_minimum: bool
    measured: float
    limit: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        if self.goal is None:
            return None
        return self.measured >= self.goal if self.is_minimum else self.measured <= self.goal


class Results(NamedTuple):
    """The content of a folder of results.

    Args:
        goals: the goals whose measurements are there.
        notes: a sentence for each measurement that is smaller than its goal is meant for.
        missing: a sentence for each file that is missing or has other measurements.
        minutes: name of a benchmark -> minutes that it took.
    """

    goals: list[Goal]
    notes: list[str]
    missing: list[str]
    minutes: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the JSON files")
    results = read_results(parser.parse_args().folder)
    table = Table("", "paper", "goal", "measured", "met", "limit")
    for row in results.goals:
        bound = "" if row.goal is None else f"{'>=' if row.is_minimum else '<='} {row.goal:g}"
        limit = "" if row.limit is None else f"{row.limit:.2f}"
        met = {True: "yes", False: "no", None: ""}[row.met]
        table.add_row(row.about, row.paper, bound, f"{row.measured:.2f}", met, limit)
    print_table(table)
    for note in results.notes:
        print(note)
    single = ", ".join(f"{name} {minutes:.1f}" for name, minutes in results.minutes.items())
    print(f"The benchmarks took {sum(results.minutes.values()):.1f} minutes: {single}.")
    if results.missing:
        raise InputError("\n".join(results.missing))


def read_results(folder: Path) -> Results:
    """Reads the JSON files of the benchmarks in `folder`, and compares them with the goals."""
    results = Results([], [], [], _minutes(folder))
    for name, compare in GOALS.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            results.missing.append(f"{path} does not exist: run `make bench OUT={folder}`")
            continue
        report = json.loads(path.read_text())
        try:
            results.goals.extend(compare(report))
        except KeyError as error:
            results.missing.append(f"{path} was not measured with {error}: repeat `make bench OUT={folder}`")
            continue
        if name == "step":
            results.notes.extend(_notes_of_step(report))
    return results


def _minutes(folder: Path) -> dict[str, float]:
    paths = {name: folder / f"{name}.json" for name in (*GOALS, *WITHOUT_GOALS)}
    reports = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    return {name: report.get("benchmark_seconds", 0.0) / 60 for name, report in reports.items()}


def _largest_step(report: Any) -> str:
    """Returns the key of the VGG16 with most RoIs."""
    keys = [str(key) for key in report if key.startswith("vgg16, ")]
    if not keys:
        raise KeyError("--backbones vgg16")
    return max(keys, key=lambda key: int(key.split()[1]))


def _notes_of_step(report: Any) -> list[str]:
    key = _largest_step(report)
    short = report[key]["short"]
    if (key, short) == FULL_STEP:
        return []
    full, full_short = FULL_STEP
    return [
        f"The steps were measured with {key}, short side {short}. Their goals are for {full}, short side {full_short}: "
        "`make bench-full`."
    ]


def _step(report: Any) -> list[Goal]:
    methods = report[_largest_step(report)]["methods"]
    ratio = {name: values["seconds_ratio"]["median"] for name, values in methods.items()}
    exact, rescore_top, layer = ratio["ohem"], ratio["ohem-rescore-top"], ratio["ohem-loss-layer"]
    return [
        Goal("step, OHEM exact / FRCN", "1.75", 1.35, False, exact),
        Goal("step, OHEM rescored / FRCN", "", 1.20, False, rescore_top),
        Goal("step, OHEM with a shortlist / FRCN", "", 1.05, False, ratio["ohem-shortlist"]),
        Goal("step, OHEM with a shortlist, rescored / FRCN", "", 1.03, False, ratio["ohem-shortlist-rescore-top"]),
        Goal("step, loss layer / OHEM exact", "> 2", 2.0, True, layer / exact),
        Goal("step, loss layer / OHEM rescored", "", 2.4, True, layer / rescore_top),
        Goal("step, mmdetection's rule / OHEM exact", "", 1.4, True, ratio["mmdetection"] / exact),
        Goal("peak memory, OHEM / FRCN", "1.36", 1.10, False, methods["ohem"]["peak_ratio"]),
    ]


def _pool(report: Any) -> list[Goal]:
    seconds = report["seconds"]
    ratio = _ratio(seconds, "torchvision, every RoI", "ours, distinct")
    return [Goal("read-only RoI pooling, torchvision / ours", "", 4, True, ratio)]


def _select(report: Any) -> list[Goal]:
    few, many = report["4000 RoIs, 2 groups"], report["1000000 RoIs, 2 groups"]
    return [
        Goal("batched_nms and top-k / hard_rois, R = 4000, k = 128", "", 4, True, _ratio(few, "torchvision", "ours")),
        Goal("hard_rois, R = 1000000, k = 128, seconds", "", 0.5, False, many["ours"]["median"]),
    ]


def _detect(report: Any) -> list[Goal]:
    plain = report["plain"]
    ratio = _ratio(plain, "every RoI", "distinct")
    return [Goal("detection, without / with distinct RoIs", "", 1.3, True, ratio, plain["limit"])]


def _propose(report: Any) -> list[Goal]:
    rates = {int(cores): rate for cores, rate in report["images_per_second"].items()}
    cores = max(rates)
    about = f"selective search, {cores} cores / one, in units of {cores}"
    return [Goal(about, "", 0.8, True, rates[cores] / rates[1] / cores)]


def _picture(report: Any) -> list[Goal]:
    return [Goal("share of selective search in a picture", "", None, False, report["search_share"])]


def _torchvision_step(report: Any) -> list[Goal]:
    ratio = _ratio(report["seconds"], "with_ohem", "torchvision")
    return [Goal("step of Faster R-CNN, with_ohem / torchvision", "", 1.1, False, ratio)]


def _segmentation(report: Any) -> list[Goal]:
    return [
        Goal(f"{name}, sort of all / OHEMLoss", "", 1, True, _ratio(seconds, "sort of all", "OHEMLoss"))
        for name, seconds in report["losses"].items()
    ]


def _voc_ap(report: Any) -> list[Goal]:
    return [Goal("VOC's AP, the devkit's loops / ours", "", 5, True, _ratio(report["seconds"], "VOC, loops", "VOC"))]


def _ratio(seconds: dict[str, dict[str, float]], some: str, other: str) -> float:
    return seconds[some]["median"] / seconds[other]["median"]


GOALS: dict[str, Callable[[Any], list[Goal]]] = {
    "step": _step,
    "pool": _pool,
    "select": _select,
    "detect": _detect,
    "picture": _picture,
    "propose": _propose,
    "torchvision_step": _torchvision_step,
    "segmentation": _segmentation,
    "voc_ap": _voc_ap,
}
"""Name of a JSON file -> function of its content that returns its goals."""
WITHOUT_GOALS = ("agree", "anchors")
"""Names of the other JSON files."""


if __name__ == "__main__":
    run_main(main)
