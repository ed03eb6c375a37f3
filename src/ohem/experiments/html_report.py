"""The page of a comparison: one HTML file that contains its charts, and needs no server."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ohem.config.schema import DataConfig
from ohem.evaluation.time_to_map import START, CurvePoint
from ohem.experiments.commands import format_command
from ohem.experiments.compare_report import time_problem, time_rows
from ohem.experiments.results import UNTRAINED, MethodSummary
from ohem.extras import import_extra
from ohem.io.files import atomic_write
from ohem.io.numbers import format_number
from ohem.recorder import STATISTICS

MAX_POINTS = 60
"""Maximum number of points in a training curve."""
MIN_POINTS = 5
"""Minimum number of points in a training curve; runs with fewer rows in metrics.csv have none."""

_RPN = "rpn_"  # prefix of the columns of metrics.csv about the anchors of the region proposal network
_SHARES = ("foreground", "far")
_LOSSES = ("loss_all", "loss_chosen")
_AXES = {"seconds": "seconds of training", "step": "SGD step"}


def check_page() -> None:
    """Raises `InputError` if a package for the page is not installed, so that this is known before the trainings."""
    for package in ("jinja2", "matplotlib"):
        import_extra(package, "the page of a comparison")


def write_page(
    path: Path, summaries: Sequence[MethodSummary], commands: Sequence[Sequence[str]], data: DataConfig
) -> None:
    """Writes the page of a comparison.

    Args:
        path: HTML file to write.
        summaries: results of the methods; the first is the base.
        commands: arguments of the training commands.
        data: data of the trainings.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("ohem.experiments"), autoescape=True, undefined=StrictUndefined)
    environment.globals["number"] = format_number
    text = environment.get_template("compare.html").render(
        **_content(summaries, commands), train=", ".join(data.train + data.negatives), test=", ".join(data.test)
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def smoothed(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Returns at most `MAX_POINTS` points, each the mean of equally many consecutive points of `curve`."""
    size = -(-len(curve) // MAX_POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), max(size, 1))]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def format_statistic(name: str, value: float | None) -> str:
    """Formats a mean of the column `name` of metrics.csv: a share in percent, a loss with 3 decimals, or a count."""
    if value is None:
        return ""
    name = name.removeprefix(_RPN)
    if name in _SHARES:
        return f"{format_number(100 * value, 0)} %"
    return format_number(value, 3 if name in _LOSSES else 0)


def _content(summaries: Sequence[MethodSummary], commands: Sequence[Sequence[str]]) -> dict[str, Any]:
    from ohem.experiments.charts import gain_chart, svg

    base, *others = summaries
    known = STATISTICS | {f"{_RPN}{name}": f"of the anchors: {meaning}" for name, meaning in STATISTICS.items()}
    statistics = {
        name: meaning for name, meaning in known.items() if any(method.mined(name) is not None for method in summaries)
    }
    rows = min(len(run.curve) for method in summaries for run in method.runs)
    trained = [method for method in others if not method.is_untrained(base)]
    return {
        "base": base,
        "methods": summaries,
        "differences": [(method, method.against(base)) for method in others],
        "untrained": UNTRAINED,
        "statistics": statistics,
        "mined": {
            method.name: [format_statistic(name, method.mined(name)) for name in statistics] for method in summaries
        },
        **_time_content(summaries),
        "rows": rows,
        "training": _training_chart(summaries) if rows >= MIN_POINTS else "",
        "gains": [(method, svg(gain_chart(method.gains(base)))) for method in trained],
        "commands": [format_command(command) for command in commands],
    }


def _time_content(summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    """Returns the table and charts of the mAP against the time; a method without evaluated snapshots has no line."""
    drawn = [method for method in summaries if len(method.map_curve) > 1]
    return {
        "times": time_rows(summaries),
        "time_problem": time_problem(summaries),
        "map_charts": [_map_chart(drawn, summaries[0], field, label) for field, label in _AXES.items()]
        if drawn
        else [],
    }


def _map_chart(methods: Sequence[MethodSummary], base: MethodSummary, field: str, label: str) -> str:
    from ohem.experiments.charts import map_chart, svg

    def line(curve: Sequence[CurvePoint]) -> list[tuple[float, float]]:
        return [(getattr(point, field), point.map) for point in (START, *curve)]

    runs = {method.name: [line(run.map_curve) for run in method.runs] for method in methods}
    means = {method.name: line(method.map_curve) for method in methods}
    return svg(map_chart(runs, means, x=label, target=base.map.mean, base=base.name))


def _training_chart(summaries: Sequence[MethodSummary]) -> str:
    from ohem.experiments.charts import PAGE_SIZE, line_chart, svg

    curves = {method.name: [smoothed(run.curve) for run in method.runs] for method in summaries}
    return svg(line_chart(curves, x="SGD step", y="training loss", size=PAGE_SIZE))
