"""The page of a comparison: one HTML file with its charts inside, to be mailed or put on a server as it is."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ohem.errors import InputError
from ohem.experiments.arms import shown
from ohem.experiments.outcomes import Summary
from ohem.files import replacing
from ohem.training.config import DataConfig

POINTS = 60
MISSING = 'the page needs Jinja and matplotlib: pip install "ohem[experiments]"'


def check_page() -> None:
    """Raises InputError if a page could not be written, before hours are spent on what it is to show."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(MISSING) from error


def write_page(path: Path, summaries: Sequence[Summary], lines: Sequence[Sequence[str]], data: DataConfig) -> None:
    """Writes the comparison of `summaries`, the first of which is the base, made by the commands `lines` on `data`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("ohem.experiments"), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("compare.html").render(
        **_content(summaries, lines), train=", ".join(data.train), test=", ".join(data.test)
    )
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def smoothed(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points, each the mean of as many of `curve` that follow each other."""
    size = -(-len(curve) // POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), max(size, 1))]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def _content(summaries: Sequence[Summary], lines: Sequence[Sequence[str]]) -> dict[str, Any]:
    from ohem.experiments.bars import gain_chart
    from ohem.experiments.charts import line_chart, svg

    base = summaries[0]
    curves = {arm.name: [smoothed(run.curve) for run in arm.runs] for arm in summaries}
    return {
        "base": base,
        "arms": summaries,
        "lines": [shown(line) for line in lines],
        "training": svg(line_chart(curves, x="SGD step", y="training loss")),
        "gains": [(arm, arm.against(base), svg(gain_chart(arm.gains(base)))) for arm in summaries[1:]],
    }
