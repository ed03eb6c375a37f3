"""The study by category as a table, sentences, a chart and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ohem.experiments.categories.facts import PROPERTIES, Category, correlations
from ohem.experiments.charts import COLOURS, folded, plain_text
from ohem.experiments.significance import Correlation
from ohem.extras import import_extra
from ohem.io.console import make_table
from ohem.io.numbers import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.05
"""Highest p-value of a correlation that is reported as one."""


def category_table(categories: Sequence[Category], title: str) -> Table:
    """Returns a table of all classes, the highest gain first."""
    table = make_table(
        "class", "objects", "size", "background", "mined", "taken as", "FRCN", "OHEM", "gain", title=title
    )
    table.caption = "size, background, mined, taken as: %; FRCN, OHEM: AP"
    for one in by_gain(categories):
        values = (one.size, one.background, one.mined, one.taken_for)
        table.add_row(
            one.name,
            str(one.objects),
            *("" if value is None else format_number(value) for value in values),
            *("" if mean is None else format_number(mean.mean) for mean in (one.base_ap, one.ap)),
            "" if one.gain is None else format_number(one.gain.mean, sign=True),
        )
    return table


def by_gain(categories: Sequence[Category]) -> list[Category]:
    """Returns the classes, the highest gain first; those without a gain last."""
    return sorted(categories, key=lambda one: (one.gain is None, -one.gain.mean if one.gain else 0.0))


def sentences(categories: Sequence[Category]) -> list[str]:
    """Returns a sentence on the correlation of the gain with each property."""
    return [_sentence(PROPERTIES[key][0], computed) for key, computed in correlations(categories).items()]


def _sentence(label: str, correlation: Correlation | None) -> str:
    if correlation is None:
        return f"gain and {label}: no correlation is computed, since fewer than four classes or one value are known"
    text = f"rank correlation {format_number(correlation.rho, 2, sign=True)}, p = {correlation.p:.2g}"
    related = "related" if correlation.p <= LEVEL else "no relation is visible"
    return f"gain and {label}: {related} ({text}, {correlation.n} classes)"


def as_json(categories: Sequence[Category]) -> dict[str, Any]:
    """Returns the classes and the correlations for other programs."""
    computed = correlations(categories)
    return {
        "classes": [_without_nan(asdict(one)) for one in by_gain(categories)],
        "correlations": {key: None if value is None else asdict(value) for key, value in computed.items()},
    }


def _without_nan(value: Any) -> Any:
    """Returns `value` with None for numbers that JSON does not have, such as the interval of one seed."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def category_chart(networks: Mapping[str, Sequence[Category]]) -> Figure:
    """Draws the gain of each class against each property, one colour for each network.

    Raises:
        InputError: matplotlib is not installed.
    """
    import_extra("matplotlib", "a chart")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    with plain_text():
        grid = figure.subplots(2, 3, sharey=True).flat
        for axes, (label, value) in zip(grid, PROPERTIES.values(), strict=False):
            axes.set_xlabel(label, fontsize="small")
            axes.axhline(0, color="#444444", linewidth=0.8)
            for colour, categories in zip(COLOURS, networks.values(), strict=False):
                for one in categories:
                    if one.gain and (number := value(one)) is not None:
                        axes.plot(number, one.gain.mean, "o", color=colour, markersize=4)
                        place = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": "x-small"}
                        axes.annotate(folded(one.name), (number, one.gain.mean), **place)
            axes.margins(x=0.15, y=0.15)
            axes.spines[["top", "right"]].set_visible(False)
        if len(networks) > 1:
            _draw_legend(figure, list(networks))
    figure.supylabel("gain of OHEM in AP (points)", fontsize="medium")
    return figure


def _draw_legend(figure: Figure, networks: Sequence[str]) -> None:
    """Draws the names of the networks above the chart."""
    axes = figure.axes[0]
    points = [axes.plot([], [], "o", color=colour)[0] for colour, _ in zip(COLOURS, networks, strict=False)]
    figure.legend(points, list(map(folded, networks)), frameon=False, loc="outside upper center", ncols=len(points))
