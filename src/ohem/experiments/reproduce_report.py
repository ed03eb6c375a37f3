"""Our results next to those of the paper, as tables and as JSON."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from ohem.config.paper import PaperTable
from ohem.experiments.plan import SMALL, PlannedRun
from ohem.experiments.results import RunResult
from ohem.experiments.significance import mean_of
from ohem.io.console import make_table
from ohem.io.numbers import format_number

Results = Mapping[PlannedRun, Sequence[RunResult]]
"""Row with a network -> its runs over the seeds; none if the server computes the results."""


def make_tables(table: PaperTable, results: Results, small: bool) -> list[Table]:
    """Returns the table to print, and a table of all classes if the paper has one and there are results.

    Args:
        table: table of the paper.
        results: results of its rows.
        small: whether the small recipes were trained, which have one network.
    """
    tables = [_map_table(table, results, small)]
    return [*tables, _class_table(results)] if table.by_class and any(results.values()) else tables


def as_json(table: PaperTable, results: Results) -> dict[str, Any]:
    """Returns the results of each seed for other programs."""
    rows = [
        {
            "row": planned.row.label,
            "network": planned.network,
            "recipe": planned.name,
            "paper": {name: planned.row.paper(name) for name in table.networks_of(planned.row)},
            "maps": [run.map for run in runs],
            "ap": [dict(run.ap) for run in runs],
            "loss_all_rois": [run.loss for run in runs],
            "seconds_per_step": [run.seconds for run in runs],
        }
        for planned, runs in results.items()
    ]
    return {"title": table.title, "metric": table.metric, "rows": rows}


def _map_table(table: PaperTable, results: Results, small: bool) -> Table:
    rows = list(dict.fromkeys(planned.row for planned in results))
    networks = [name for name in table.networks if any(row.paper(name) is not None for row in rows)]
    printed = Table(
        "",
        *(f"paper, {name}" for name in networks),
        title=table.title,
        caption="ours: mean ± standard error" if any(len(runs) > 1 for runs in results.values()) else None,
        caption_justify="left",
    )
    for column in ["ours"] if small else [f"ours, {name}" for name in networks]:
        printed.add_column(column, style="bold", no_wrap=True)
    printed.add_column("loss, all RoIs")
    for row in rows:
        by_network = {planned.network: runs for planned, runs in results.items() if planned.row == row}
        ours = [_format_map(by_network.get(name)) for name in ([SMALL] if small else networks)]
        paper = ["" if row.paper(name) is None else str(row.paper(name)) for name in networks]
        printed.add_row(row.label, *paper, *ours, ", ".join(_format_loss(runs) for runs in by_network.values()))
    return printed


def _format_map(runs: Sequence[RunResult] | None) -> str:
    if runs is None:
        return ""
    if not runs:
        return "from the server"
    maps = [run.map for run in runs if run.map is not None]
    return str(mean_of(maps)) if maps else "no objects"


def _format_loss(runs: Sequence[RunResult]) -> str:
    losses = [run.loss for run in runs if run.loss is not None]
    return format_number(mean_of(losses).mean, 4) if losses else ""


def _class_table(results: Results) -> Table:
    """Returns the AP of each class, mean over the seeds, with a column for each row of the paper."""
    scored = {planned: [run.ap for run in runs] for planned, runs in results.items() if runs}
    several = len({planned.network for planned in scored}) > 1
    labels = (f"{planned.row.label}, {planned.network}" if several else planned.row.label for planned in scored)
    printed = make_table("", *labels, title="AP")
    for name in dict.fromkeys(name for runs in scored.values() for ap in runs for name in ap):
        columns = [[value for ap in runs if (value := ap.get(name)) is not None] for runs in scored.values()]
        printed.add_row(name, *(format_number(fmean(values)) if values else "" for values in columns))
    return printed
