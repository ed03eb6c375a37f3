"""Ours beside the paper's figures: a table for the person, and JSON."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.table import Table

from ohem.console import make_table
from ohem.experiments.cells import SMALL, Cell
from ohem.experiments.outcomes import Outcome
from ohem.experiments.statistics import mean_of
from ohem.experiments.tables import PaperTable

Found = Mapping[Cell, Sequence[Outcome]]
"""The runs of each row and network, over the seeds; none where the server scores them."""


def printed(table: PaperTable, found: Found, small: bool) -> list[Table]:
    """For the person: the figures, and those of each class where the paper tells them."""
    told = [_figures(table, found, small)]
    return [*told, _by_class(found)] if table.by_class and any(found.values()) else told


def as_json(table: PaperTable, found: Found) -> dict[str, Any]:
    """The figures of each seed."""
    rows = [
        {
            "row": cell.row.label,
            "network": cell.network,
            "recipe": cell.recipe,
            "paper": dict(cell.row.paper),
            "maps": [run.map for run in runs],
            "ap": [dict(run.ap) for run in runs],
            "loss_all_rois": [run.loss for run in runs],
            "seconds_per_step": [run.seconds for run in runs],
        }
        for cell, runs in found.items()
    ]
    return {"title": table.title, "metric": table.metric, "rows": rows}


def _figures(table: PaperTable, found: Found, small: bool) -> Table:
    networks = list(dict.fromkeys(name for cell in found for name in cell.row.paper))
    printed = Table("", *(f"paper, {name}" for name in networks), title=table.title)
    for column in ["ours"] if small else [f"ours, {name}" for name in networks]:
        printed.add_column(column, style="bold", no_wrap=True)
    printed.add_column("loss, all RoIs")
    for row in dict.fromkeys(cell.row for cell in found):
        cells = {cell.network: runs for cell, runs in found.items() if cell.row == row}
        ours = [_told(cells.get(name)) for name in ([SMALL] if small else networks)]
        paper = ["" if row.paper.get(name) is None else str(row.paper[name]) for name in networks]
        printed.add_row(row.label, *paper, *ours, ", ".join(_loss(runs) for runs in cells.values()))
    return printed


def _told(runs: Sequence[Outcome] | None) -> str:
    if runs is None:
        return ""
    if not runs:
        return "the server's"
    maps = [run.map for run in runs if run.map is not None]
    return str(mean_of(maps)) if maps else "nothing to find"


def _loss(runs: Sequence[Outcome]) -> str:
    losses = [run.loss for run in runs if run.loss is not None]
    return f"{mean_of(losses).mean:.4f}" if losses else ""


def _by_class(found: Found) -> Table:
    """AP of each class, mean over the seeds, a column for each row of the paper's."""
    scored = {cell: [run.ap for run in runs] for cell, runs in found.items() if runs}
    several = len({cell.network for cell in scored}) > 1
    printed = make_table("", *(f"{c.row.label}, {c.network}" if several else c.row.label for c in scored), title="AP")
    for name in dict.fromkeys(name for runs in scored.values() for ap in runs for name in ap):
        columns = [[value for ap in runs if (value := ap.get(name)) is not None] for runs in scored.values()]
        printed.add_row(name, *(f"{fmean(each):.1f}" if each else "" for each in columns))
    return printed
