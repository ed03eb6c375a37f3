"""Seconds and memory as numbers for JSON, and as a table next to the results of the paper."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

from rich.table import Table

from ohem.bench.measure import Measurement
from ohem.bench.methods import baseline
from ohem.config.paper import StepFigures
from ohem.kernels.choice import processor_name

GB = 1e9


def machine() -> dict[str, Any]:
    """Describes the machine and its software, without names of host or user."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": processor_name(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "ohem")},
    }


def summarise(measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """Summarises the measurements of each method for JSON.

    Returns:
        Method -> seconds and CPU seconds per step, and their ratios to those of the baseline in the same round, each as
        median, lowest and highest; peak memory in bytes, of the GPU if the method ran on one, and its ratio. A ratio is
        None if the baseline is missing.
    """
    summary = {}
    for name, method in measured.items():
        base = measured.get(baseline(name))
        summary[name] = {
            "seconds": _spread(method.seconds),
            "seconds_ratio": base and _ratios(method.seconds, base.seconds),
            "cpu_seconds": _spread(method.cpu_seconds),
            "cpu_seconds_ratio": base and _ratios(method.cpu_seconds, base.cpu_seconds),
            "built_bytes": method.built.now,
            "peak_bytes": method.peak.peak,
            "peak_ratio": base and method.peak.peak / base.peak.peak,
        }
    return summary


def rois_seen(measured: Mapping[str, Measurement]) -> dict[str, float]:
    """Returns the number of images, and the mean number of RoIs and of distinct RoIs per image.

    All methods have the same images, so those of the first are counted. RoIs are distinct if their windows on the
    feature map differ.
    """
    first = next(iter(measured.values()))
    rois, distinct = ([count for batch in first.batches for count in batch[key]] for key in ("rois", "distinct"))
    return {"images": len(rois), "rois": sum(rois) / len(rois), "distinct": sum(distinct) / len(distinct)}


def table(title: str, summary: Mapping[str, Any], paper: Mapping[str, StepFigures]) -> Table:
    """Returns a table with a row for each method of `summary`, and columns of the paper if it has results."""
    columns = ["method", "s/step", "ratio", "CPU s", "ratio", "built GB", "peak GB", "ratio"]
    table = Table(*columns, *(["paper: s", "ratio", "GB", "ratio"] if paper else []), title=title, title_justify="left")
    for name, row in summary.items():
        values = [
            _range(row["seconds"]),
            _range(row["seconds_ratio"]),
            f"{row['cpu_seconds']['median']:.3g}",
            _number(row["cpu_seconds_ratio"] and row["cpu_seconds_ratio"]["median"]),
            f"{row['built_bytes'] / GB:.2f}",
            f"{row['peak_bytes'] / GB:.2f}",
            _number(row["peak_ratio"]),
        ]
        table.add_row(name, *values, *(_paper_values(name, paper) if paper else []))
    return table


def _paper_values(name: str, paper: Mapping[str, StepFigures]) -> list[str]:
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
