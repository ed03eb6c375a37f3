"""Charts of runs by matplotlib, as files or as SVG inside a page. The same data give the same bytes.

A line chart compares methods. Each method has a thin line for each run (seed), and a thick line for their mean.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.io.files import atomic_write
from ohem.io.numbers import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]
"""Points (x, y), from left to right."""

SUFFIXES = (".svg", ".png")
# The colours of Okabe and Ito, which colour-blind readers can distinguish, without their yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.")
FILE_SIZE = (7.0, 4.5)
"""Width and height in inches of a chart that is a file."""
PAGE_SIZE = (5.2, 3.4)
"""Width and height in inches of a chart in a page: small, so that its text can be read where the page is narrow."""
MAX_LABEL = 40
"""Maximum number of characters in a line of a label."""
MAX_MARKERS = 30
"""Maximum number of points in a line that has a marker at each point."""


def line_chart(
    methods: Mapping[str, Sequence[Line]],
    *,
    x: str,
    y: str,
    title: str = "",
    from_zero: bool = True,
    size: tuple[float, float] = FILE_SIZE,
    means: Mapping[str, Line] | None = None,
) -> Figure:
    """Draws all methods on one axis.

    Args:
        methods: name -> the lines of its runs. Their mean is drawn where all of them have a point.
        means: name -> the line to draw as the mean instead, for runs that have no points at the same x.
        x, y: labels of the axes, with the unit.
        title: text above the chart.
        from_zero: whether the vertical axis begins at 0.
        size: width and height in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    import_extra("matplotlib", "a chart")
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    with plain_text():
        axes = figure.add_subplot(xlabel=x, ylabel=y, title=title)
        for number, (name, lines) in enumerate(methods.items()):
            turn, place = divmod(number, len(COLOURS))
            mean = (means or {}).get(name) or mean_line(lines)
            _draw_method(axes, name, lines, mean, COLOURS[place], STYLES[turn % len(STYLES)])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if from_zero:
            axes.set_ylim(0, 1.03 * axes.get_ylim()[1])  # otherwise a flat line is on the edge
        if methods:
            axes.legend(frameon=False)
    return figure


@contextmanager
def plain_text() -> Iterator[None]:
    """Within this context the text of a chart is drawn as it is: "$" begins no formula."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield


def loss_curves(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]]) -> Figure:
    """Draws figure 3 of the paper: the mean loss per RoI over all RoIs, by the step of SGD.

    Args:
        curves: method -> its runs, each as pairs (step, loss), first step first.

    Raises:
        InputError: matplotlib is not installed.
    """
    import_extra("matplotlib", "a chart")
    from matplotlib.ticker import MaxNLocator

    figure = line_chart(curves, x="SGD step", y="mean loss per RoI (all RoIs)")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def map_chart(
    methods: Mapping[str, Sequence[Line]], means: Mapping[str, Line], *, x: str, target: float, base: str
) -> Figure:
    """Draws the mAP of methods against seconds or steps, and the final mAP of the base as a horizontal line.

    Args:
        methods: name -> the lines of its runs.
        means: name -> their mean.
        x: label of the horizontal axis.
        target: final mAP of the base.
        base: name of the base.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = line_chart(methods, means=means, x=x, y="mAP", size=PAGE_SIZE)
    with plain_text():
        (axes,) = figure.axes
        label = folded(f"final mAP of {base}")
        axes.axhline(target, color="#666666", linewidth=1, linestyle=(0, (4, 3)), zorder=0, label=label)
        axes.legend(frameon=False, loc="lower right")  # where rising lines leave room
    return figure


def gain_chart(gains: Sequence[tuple[str, float]]) -> Figure:
    """Draws a bar for each class.

    Args:
        gains: pairs (class, gain in AP in points), in the order of the bars.

    Raises:
        InputError: matplotlib is not installed.
    """
    import_extra("matplotlib", "a chart")
    from matplotlib.figure import Figure

    names, values = [folded(name) for name, _ in gains], [value for _, value in gains]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(PAGE_SIZE[0], 0.9 + 0.3 * lines), layout="constrained")
    with plain_text():
        axes = figure.add_subplot(xlabel="gain in AP (points)")
        axes.set_yticks(range(len(gains)), names)
    bars = axes.barh(range(len(gains)), values, color=[COLOURS[0] if value >= 0 else COLOURS[1] for value in values])
    axes.invert_yaxis()
    axes.bar_label(bars, [format_number(value, sign=True) for value in values], padding=3)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.margins(x=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def svg(figure: Figure) -> str:
    """Returns an <svg> element for a page. It has no date and no random names."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "ohem", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the fonts of the reader may have it
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    document = text.getvalue()
    return document[document.index("<svg") :]


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as SVG or PNG, by the suffix of `path`."""
    check_place(path)
    with atomic_write(path) as temporary:
        if path.suffix == ".svg":
            temporary.write_text(svg(figure), encoding="utf-8")
        else:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def check_place(path: Path) -> None:
    """Raises `InputError` if a chart cannot be written to `path`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--plot {path} is neither {' nor '.join(SUFFIXES)}: give it one of these suffixes")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: the folder {path.parent} does not exist: make it or choose another")
    import_extra("matplotlib", "a chart")


def _draw_method(axes: Axes, name: str, lines: Sequence[Line], mean: Line, colour: str, style: str) -> None:
    several = len(lines) > 1
    for line in lines if several else ():
        axes.plot(*_columns(line), color=colour, linestyle=style, linewidth=0.8, alpha=0.45)
    marker = "o" if len(mean) <= MAX_MARKERS else ""
    axes.plot(
        *_columns(mean), label=folded(name), color=colour, linestyle=style, linewidth=2, marker=marker, markersize=4
    )


def folded(name: str) -> str:
    """Returns a name as a label, in lines so short that there is room for the chart.

    A legend leaves out labels that begin with an underscore, so these begin with a space of no width.
    """
    lines = "\n".join(name[start : start + MAX_LABEL] for start in range(0, len(name), MAX_LABEL))
    return f"\N{ZERO WIDTH SPACE}{lines}" if name.startswith("_") else lines


def mean_line(lines: Sequence[Line]) -> Line:
    """Returns the mean of `lines` where all of them have a point; for one line, the line itself."""
    values = [dict(line) for line in lines]
    shared = [x for x in values[0] if all(x in others for others in values)] if values else []
    return [(x, sum(line[x] for line in values) / len(values)) for x in shared]


def _columns(line: Line) -> tuple[list[float], list[float]]:
    return [x for x, _ in line], [y for _, y in line]
