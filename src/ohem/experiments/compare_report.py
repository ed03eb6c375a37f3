"""A comparison of methods as tables, sentences and JSON."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ohem.evaluation.time_to_map import CurvePoint, TimeToMap
from ohem.experiments.results import UNTRAINED, MethodSummary
from ohem.io.console import make_table
from ohem.io.numbers import format_number


def comparison_table(summaries: Sequence[MethodSummary]) -> Table:
    """Returns a table with a row for each method; the first method is the base."""
    base = summaries[0]
    table = Table()
    table.add_column("method", overflow="fold", min_width=min(10, max(len(method.name) for method in summaries)))
    headers = ["mAP, mean\n± standard\nerror", f"gain over\n{base.name}", "95 %\ninterval", "loss over\nall RoIs"]
    for column in (*headers, "false pos.\nan image at\n80 % recall", "s/step"):
        table.add_column(column, overflow="fold", min_width=max(map(len, column.split())))
    for method in summaries:
        loss = format_number(method.loss.mean, 4) if method.loss else ""
        if method is base:
            difference = ["", ""]
        else:
            gain = method.against(base)
            interval = "" if math.isnan(gain.low) else f"{_signed(gain.low)} to {_signed(gain.high)}"
            difference = [_signed(gain.mean), interval]
        wrong = format_number(method.false_positives.mean, 2) if method.false_positives else ""
        table.add_row(method.name, str(method.map), *difference, loss, wrong, format_number(method.seconds, 2))
    return table


def time_tables(summaries: Sequence[MethodSummary]) -> list[Table]:
    """Returns a table of when each method first had the final mAP of the first one; none where that is unknown."""
    base = summaries[0]
    rows = time_rows(summaries)
    if not rows:
        return []
    title = f"First time at {format_number(base.map.mean)} mAP, the final mAP of {base.name}"
    table = make_table("method", "seconds", "steps", f"share of the training\ntime of {base.name}", title=title)
    for row in rows:
        table.add_row(*row)
    return [table]


def time_rows(summaries: Sequence[MethodSummary]) -> list[tuple[str, str, str, str]]:
    """Returns name, seconds, steps and share for each method, as text; nothing where `time_problem` says why."""
    base = summaries[0]
    if _is_base_untrained(base) or all(len(method.map_curve) < 2 for method in summaries):
        return []
    return [(method.name, *_time_cells(method.time_to_map(base))) for method in summaries]


def _time_cells(time: TimeToMap | None) -> tuple[str, str, str]:
    if time is None:
        return "unknown", "", ""
    if time.reached is None:
        return "not reached", "", ""
    share = "" if time.share is None else format_number(time.share, 2)
    return format_number(time.reached.seconds), format_number(time.reached.step, 0), share


def time_problem(summaries: Sequence[MethodSummary]) -> str:
    """Returns a sentence that says why a time to the final mAP of the first method is unknown; "" if none is."""
    base, without = summaries[0], [method.name for method in summaries if len(method.map_curve) < 2]
    if without:
        return (
            f"The time to the final mAP of {base.name} is unknown for {', '.join(without)}: no snapshot was evaluated, "
            "since the curve was switched off (--curve 0) or an earlier version trained the runs. To measure it, "
            "compare into a new folder."
        )
    if _is_base_untrained(base):
        return (
            f"The time to the final mAP of {base.name} means nothing, since this mAP is below {UNTRAINED:.0f}: "
            "train longer."
        )
    return ""


def _is_base_untrained(base: MethodSummary) -> bool:
    return base.map.mean < UNTRAINED


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
    problem = time_problem(summaries)
    return [*descriptions, *(_finding(method, base) for method in summaries[1:]), *([problem] if problem else [])]


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
                "false_positives_per_image": [run.false_positives for run in method.runs],
                "seconds_per_step": method.seconds,
                "mined": [dict(run.mined) for run in method.runs],
                "map_curves": [[point._asdict() for point in run.map_curve] for run in method.runs],
                "time_to_map": _time(None if _is_base_untrained(base) else method.time_to_map(base)),
                **({} if method is base else {"difference": _difference(method, base)}),
            }
            for method in summaries
        ],
    }


def _time(time: TimeToMap | None) -> dict[str, Any] | None:
    if time is None:
        return None
    of_seeds = [_steps_and_seconds(reached) for reached in time.of_seeds]
    own = {**_steps_and_seconds(time.reached), "share_of_base_seconds": time.share}
    return {"map": time.target, "reached": time.reached is not None, **own, "seeds": of_seeds}


def _steps_and_seconds(reached: CurvePoint | None) -> dict[str, float | None]:
    return {"steps": reached.step if reached else None, "seconds": reached.seconds if reached else None}


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
