"""Seconds and memory as numbers for JSON and as a table for the person, the paper's beside ours."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from ohem.experiments.bench.arms import Figures, baseline
from ohem.experiments.bench.measure import Measurement

GB = 1e9


def machine() -> dict[str, Any]:
    """What the figures were measured on; not whose it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "ohem")},
    }


def summarise(measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """Per arm: seconds and CPU seconds a step, and their ratios to the baseline's of the same round, each as median,
    lowest and highest; peak memory in bytes, on the GPU where the arm ran on one, and its ratio. Ratios are None where
    the baseline is missing.
    """
    summary = {}
    for name, arm in measured.items():
        base = measured.get(baseline(name))
        summary[name] = {
            "seconds": _spread(arm.seconds),
            "seconds_ratio": base and _ratios(arm.seconds, base.seconds),
            "cpu_seconds": _spread(arm.cpu_seconds),
            "cpu_seconds_ratio": base and _ratios(arm.cpu_seconds, base.cpu_seconds),
            "built_bytes": arm.built.now,
            "peak_bytes": arm.peak.peak,
            "peak_ratio": base and arm.peak.peak / base.peak.peak,
        }
    return summary


def rois_seen(measured: Mapping[str, Measurement]) -> dict[str, float]:
    """Mean RoIs an image, and how many of them differ on the feature map; the same images count once."""
    first = next(iter(measured.values()))
    rois, distinct = ([count for step in first.shown for count in step[key]] for key in ("rois", "distinct"))
    return {"images": len(rois), "rois": sum(rois) / len(rois), "distinct": sum(distinct) / len(distinct)}


def table(title: str, summary: Mapping[str, Any], paper: Mapping[str, Figures]) -> Table:
    """A row for each arm of `summary`; the columns of the paper only where it has figures."""
    columns = ["arm", "s/step", "ratio", "CPU s", "ratio", "built GB", "peak GB", "ratio"]
    table = Table(*columns, *(["paper: s", "ratio", "GB", "ratio"] if paper else []), title=title, title_justify="left")
    for name, row in summary.items():
        cells = [
            _range(row["seconds"]),
            _range(row["seconds_ratio"]),
            f"{row['cpu_seconds']['median']:.3g}",
            _number(row["cpu_seconds_ratio"] and row["cpu_seconds_ratio"]["median"]),
            f"{row['built_bytes'] / GB:.2f}",
            f"{row['peak_bytes'] / GB:.2f}",
            _number(row["peak_ratio"]),
        ]
        table.add_row(name, *cells, *(_paper_cells(name, paper) if paper else []))
    return table


def _paper_cells(name: str, paper: Mapping[str, Figures]) -> list[str]:
    ours, base = paper.get(name), paper.get(baseline(name))
    if ours is None:
        return [""] * 4
    ratios = (ours.seconds / base.seconds, ours.memory / base.memory) if base else (None, None)
    return [f"{ours.seconds:.2f}", _number(ratios[0]), f"{ours.memory:.1f}", _number(ratios[1])]


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    return _spread([a / b for a, b in zip(ours, theirs, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def _range(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    return f"{spread['median']:.3g} ({spread['lowest']:.3g}-{spread['highest']:.3g})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
