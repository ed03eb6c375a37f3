"""The page of a report: one HTML file with its charts and pictures, which needs no server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ohem.experiments.charts import COLOURS, PAGE_SIZE, line_chart, plain_text, svg
from ohem.insight.report.mining_facts import IOUS
from ohem.io.files import atomic_write
from ohem.io.numbers import format_number
from ohem.metrics.error_types import TYPES


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Writes the page of `make_content`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("ohem.insight"), autoescape=True, undefined=StrictUndefined)
    environment.globals["number"] = format_number
    text = environment.get_template("report.html").render(**content, types=TYPES, **_charts(content["runs"]))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _charts(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mined = [run for run in runs if run["mining"] is not None and len(run["mining"]["periods"]) > 1]
    if not mined:
        return {"foreground_chart": "", "loss_chart": "", "iou_charts": []}
    with_loss = [run for run in mined if any(run["mining"]["hardest"])]
    return {
        "foreground_chart": _chart(mined, "foreground", "share of foreground"),
        "loss_chart": _chart(with_loss, "loss", "mean loss of the chosen RoIs") if with_loss else "",
        "iou_charts": [(run["name"], svg(_iou_chart(run["mining"]["periods"]))) for run in mined],
    }


def _chart(runs: Sequence[dict[str, Any]], field: str, label: str) -> str:
    lines = {run["name"]: [[(period["step"], period[field]) for period in run["mining"]["periods"]]] for run in runs}
    return svg(line_chart(lines, x="SGD step", y=label, size=PAGE_SIZE))


def _iou_chart(periods: Sequence[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_SIZE[0], 2.8), layout="constrained")
    with plain_text():
        axes = figure.add_subplot(xlabel="SGD step", ylabel="share of the chosen RoIs")
        steps = [period["step"] for period in periods]
        shares = list(zip(*(period["ious"] for period in periods), strict=True))
        labels = [f"IoU {low / 10:g} to {high / 10:g}" for low, high in IOUS]
        axes.stackplot(steps, *shares, labels=labels, colors=[COLOURS[i] for i in (1, 5, 4, 0)])
        axes.set_ylim(0, 1)
        axes.set_xlim(steps[0], steps[-1])
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
