"""Line charts of runs, by matplotlib: as files, and as SVG to put into a page. The same data give the same bytes.

A chart shows arms; an arm has a line for each of its runs (seeds), drawn thin, and their mean, drawn thick.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ohem.errors import InputError
from ohem.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]
"""Points (x, y), from left to right."""

SUFFIXES = (".svg", ".png")
# Okabe and Ito's colours, which colour-blind readers can tell apart, without their yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.")
MOST = 40
"""Characters in a line of a label."""
MARKED = 30
"""Lines of more points than this are drawn without a marker for each."""


def line_chart(
    arms: Mapping[str, Sequence[Line]], *, x: str, y: str, title: str = "", from_zero: bool = True
) -> Figure:
    """All arms on one axis.

    Args:
        arms: name -> its runs, a line each. Their mean is drawn where all of them have a point.
        x, y: what the axes show, with the unit.
        title: above the chart.
        from_zero: the vertical axis begins at 0.

    Raises:
        InputError: matplotlib is not installed.
    """
    must_be_installed()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    with plain_text():
        axes = figure.add_subplot(xlabel=x, ylabel=y, title=title)
        for number, (name, lines) in enumerate(arms.items()):
            turn, place = divmod(number, len(COLOURS))
            _draw_arm(axes, name, lines, COLOURS[place], STYLES[turn % len(STYLES)])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if from_zero:
            axes.set_ylim(0, 1.03 * axes.get_ylim()[1])  # a flat line would else lie on the edge
        if arms:
            axes.legend(frameon=False)
    return figure


@contextmanager
def plain_text() -> Iterator[None]:
    """Within it the texts of a chart are what they are: dollars begin no formula."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield


def loss_curves(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]]) -> Figure:
    """The paper's figure 3: the mean loss per RoI over all RoIs, by the step of SGD.

    Args:
        curves: arm -> its runs, each as pairs (step, loss), first step first.
    """
    must_be_installed()
    from matplotlib.ticker import MaxNLocator

    figure = line_chart(curves, x="SGD step", y="mean loss per RoI (all RoIs)")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def svg(figure: Figure) -> str:
    """An <svg> element, to put into a page as it is; it holds no date and no names made up at random."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "ohem", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the fonts of who looks at it may have it
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as SVG or PNG, by the suffix of `path`."""
    check_place(path)
    with replacing(path) as beside:
        if path.suffix == ".svg":
            beside.write_text(svg(figure), encoding="utf-8")
        else:
            figure.savefig(beside, format="png", dpi=150, metadata={"Software": None})


def check_place(path: Path) -> None:
    """Raises `InputError` where a chart cannot be written to `path`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--plot {path} is neither {' nor '.join(SUFFIXES)}: give it one of these suffixes")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: the folder {path.parent} does not exist, make it or choose another")
    must_be_installed()


def must_be_installed() -> None:
    """Raises `InputError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError('charts need matplotlib: pip install "ohem[experiments]"') from error


def _draw_arm(axes: Axes, name: str, lines: Sequence[Line], colour: str, style: str) -> None:
    several = len(lines) > 1
    for line in lines if several else ():
        axes.plot(*_columns(line), color=colour, linestyle=style, linewidth=0.8, alpha=0.45)
    mean = mean_line(lines)
    marker = "o" if len(mean) <= MARKED else ""
    axes.plot(
        *_columns(mean), label=folded(name), color=colour, linestyle=style, linewidth=2, marker=marker, markersize=4
    )


def folded(name: str) -> str:
    """Returns a name as a label: in lines of a length that leaves room for the chart, and not left out of legends.

    A legend leaves out what begins with an underscore.
    """
    lines = "\n".join(name[start : start + MOST] for start in range(0, len(name), MOST))
    return f"\N{ZERO WIDTH SPACE}{lines}" if name.startswith("_") else lines


def mean_line(lines: Sequence[Line]) -> Line:
    """The mean of `lines` where all of them have a point; of one line, the line itself."""
    values = [dict(line) for line in lines]
    shared = [x for x in values[0] if all(x in others for others in values)] if values else []
    return [(x, sum(each[x] for each in values) / len(values)) for x in shared]


def _columns(line: Line) -> tuple[list[float], list[float]]:
    return [x for x, _ in line], [y for _, y in line]
