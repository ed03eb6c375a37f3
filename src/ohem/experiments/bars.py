"""The gain chart: a bar for each class, highest gain at the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ohem.experiments.charts import COLOURS, folded, must_be_installed, plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gain_chart(gains: Sequence[tuple[str, float]]) -> Figure:
    """Gains in AP of each class, in points, in the order given; InputError if matplotlib is not installed."""
    must_be_installed()
    from matplotlib.figure import Figure

    names, values = [folded(name) for name, _ in gains], [value for _, value in gains]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(7, 0.9 + 0.3 * lines), layout="constrained")
    with plain_text():
        axes = figure.add_subplot(xlabel="gain in AP (points)")
        axes.set_yticks(range(len(gains)), names)
    bars = axes.barh(range(len(gains)), values, color=[COLOURS[0] if value >= 0 else COLOURS[1] for value in values])
    axes.invert_yaxis()
    axes.bar_label(bars, [f"{value:+.1f}" for value in values], padding=3)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.margins(x=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
