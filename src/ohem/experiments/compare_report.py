"""A comparison of methods as tables, sentences and JSON."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ohem.experiments.results import UNTRAINED, MethodSummary
from ohem.io.console import make_table
from ohem.io.numbers import format_number


def comparison_table(summaries: Sequence[MethodSummary]) -> Table:
    """Returns a table with a row for each method; the first method is the base."""
    base = summaries[0]
    table = Table()
    table.add_column("method", overflow="fold", min_width=min(10, max(len(method.name) for method in summaries)))
    headers = ["mAP, mean\n± standard\nerror", f"gain over\n{base.name}", "95 %\ninterval", "loss over\nall RoIs"]
    for column in (*headers, "s/step"):
        table.add_column(column, overflow="fold", min_width=max(map(len, column.split())))
    for method in summaries:
        loss = format_number(method.loss.mean, 4) if method.loss else ""
        if method is base:
            difference = ["", ""]
        else:
            gain = method.against(base)
            interval = "" if math.isnan(gain.low) else f"{_signed(gain.low)} to {_signed(gain.high)}"
            difference = [_signed(gain.mean), interval]
        table.add_row(method.name, str(method.map), *difference, loss, format_number(method.seconds, 2))
    return table


def gains_table(method: MethodSummary, base: MethodSummary) -> Table:
    """Returns a table with a row for each class with objects, the highest gain first."""
    table = make_table("class", method.name, base.name, "gain", title=f"AP, {method.name} against {base.name}")
    for name, gain in method.gains(base):
        table.add_row(name, format_number(method.ap(name)), format_number(base.ap(name)), _signed(gain))
    return table


def findings(summaries: Sequence[MethodSummary]) -> list[str]:
    """Describes each method, then compares each but the first with the first, one sentence each."""
    base = summaries[0]
    descriptions = [f"{method.name}: {method.about}." for method in summaries]
    return [*descriptions, *(_finding(method, base) for method in summaries[1:])]


def _finding(method: MethodSummary, base: MethodSummary) -> str:
    pair = f"{method.name} against {base.name}"
    if method.is_untrained(base):
        maps = f"mAP {format_number(method.map.mean)} and {format_number(base.map.mean)}, both below {UNTRAINED:.0f}"
        return f"{pair}: {method.verdict(base)} ({maps})."
    gain, classes = method.against(base), method.gains(base)
    most, least = classes[0], classes[-1]
    interval = f", between {_signed(gain.low)} and {_signed(gain.high)} with 95 % confidence"
    return (
        f"{pair}: {_signed(gain.mean)} mAP over {gain.n} seed{'s' * (gain.n > 1)}"
        f"{'' if math.isnan(gain.low) else interval}: {method.verdict(base)}. "
        f"Highest gain of a class: {most[0]} {_signed(most[1])}; lowest: {least[0]} {_signed(least[1])}."
    )


def as_json(summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    """Returns all results for other programs; what is unknown is null."""
    base = summaries[0]
    return {
        "base": base.name,
        "methods": [
            {
                "name": method.name,
                "about": method.about,
                "map": _number(method.map.mean),
                "standard_error": _number(method.map.error),
                "maps": method.maps,
                "ap": [dict(run.ap) for run in method.runs],
                "loss_all_rois": [run.loss for run in method.runs],
                "seconds_per_step": method.seconds,
                "mined": [dict(run.mined) for run in method.runs],
                **({} if method is base else {"difference": _difference(method, base)}),
            }
            for method in summaries
        ],
    }


def _difference(method: MethodSummary, base: MethodSummary) -> dict[str, Any]:
    gain = method.against(base)
    return {
        "mean": gain.mean,
        "standard_error": _number(gain.error),
        "interval": [_number(gain.low), _number(gain.high)],
        "confidence": gain.confidence,
        "verdict": method.verdict(base),
        "per_class": dict(method.gains(base)),
    }


def _signed(value: float) -> str:
    return format_number(value, sign=True)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
