"""`ohem loss`: the loss over all RoIs of runs at every snapshot (paper, figure 3), as a table and a chart."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from rich.table import Table
from torch import Tensor

from ohem.console import make_console
from ohem.errors import InputError
from ohem.experiments import charts
from ohem.files import check_output, remove_leftovers
from ohem.samplers import AllSampler
from ohem.training import checkpoint, loss_all, snapshots
from ohem.training.build import build_data, build_examples, build_proposals
from ohem.training.detectors import as_fast_rcnn, build_model
from ohem.training.digests import digest_of_examples, digest_of_weights
from ohem.training.launch import launched
from ohem.training.loss_all import Row, loss_over_all
from ohem.training.metrics import tracked
from ohem.training.runs import read_run


@dataclass(frozen=True)
class Curve:
    """What is known of a run."""

    run: Path
    data: str
    """The sources, as they were given."""
    losses: dict[int, float]
    """Step -> mean loss per RoI over all RoIs, first step first."""


def compare_losses(
    runs: Sequence[Path],
    sources: Sequence[str] = (),
    plot: Path | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Curve]:
    """Measures what is missing, writes it into each RUN/loss_all.csv, prints a table of all runs and draws `plot`.

    `names`: folder of a run without its -SEED -> what the chart calls it.

    Raises:
        InputError: a run, the data or the place of the chart is of no use.
    """
    if not runs:
        raise InputError("no run is given: name the folders of one or several")
    twice = next((run for run in runs if runs.count(run) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice: name each run once")
    if plot is not None:
        charts.check_place(plot)
    opened = [_Opened(run, sources) for run in runs]  # their defects should not wait until the first is measured
    if plot is not None:
        check_output(plot, chain.from_iterable(each.inputs for each in opened))
    curves = [each.measure() for each in opened]
    _print(curves)
    if plot is not None:
        remove_leftovers(plot.parent)
        charts.save(charts.loss_curves(by_arm(curves, names or {})), plot)
        print(f"{plot}: the chart")
    return curves


def by_arm(curves: Sequence[Curve], known: Mapping[str, str]) -> dict[str, list[list[tuple[int, float]]]]:
    """Arm -> its runs as lines: runs whose names differ only in a trailing number, -SEED, are of one arm."""
    names = labels([curve.run for curve in curves])
    stems = [re.sub(r"-\d+$", "", name) for name in names]
    arms: dict[str, list[list[tuple[int, float]]]] = {}
    for name, stem, curve in zip(names, stems, curves, strict=True):
        seeds = stems.count(stem)
        one = known.get(stem, stem if seeds > 1 else name)
        arms.setdefault(f"{one} ({seeds} runs)" if seeds > 1 else one, []).append(list(curve.losses.items()))
    return arms


def labels(runs: Sequence[Path]) -> list[str]:
    """Names of their folders, or the whole paths where two folders have the same."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


class _Opened:
    """A run that is known to have weights, and the data to measure it on."""

    def __init__(self, run: Path, sources: Sequence[str]) -> None:
        self.run, self.recipe = run, read_run(run)
        if not snapshots.found(run) and not checkpoint.exists(run):
            raise InputError(f"{run} has no checkpoint yet: let `ohem train` reach its first (run.checkpoint_every)")
        sources = sources or self.recipe.data.train
        self.data = " ".join(sources)
        data = build_data(sources, self.recipe.data.classes, "--data", skip_others=self.recipe.data.skip_others)
        self.inputs = list(data.files())
        self.examples = build_examples(data, build_proposals(data, self.recipe.proposals), self.recipe)

    def measure(self) -> Curve:
        """The losses at every snapshot and the newest checkpoint, and those that training measured besides."""
        digest = digest_of_examples(self.examples)
        before = loss_all.read(self.run)
        self._measure_missing(digest)
        after = loss_all.read(self.run)
        self._warn_of_others(digest, before, after)
        rows = [row for row in after if row.data_digest == digest]
        return Curve(self.run, self.data, {row.step: row.loss for row in sorted(rows, key=lambda row: row.step)})

    def _measure_missing(self, data_digest: str) -> None:
        # The data are never trained on here, so neither processes nor precision of the training matter.
        with launched(replace(self.recipe.run, devices="1", precision="32-true")) as fabric:
            model = as_fast_rcnn(build_model(self.recipe, AllSampler()), "ohem loss").to(fabric.device)
            for step, load in self._weights().items():
                weights = load()
                digest = digest_of_weights(weights)
                if loss_all.known(self.run, step, data_digest, digest):
                    continue
                try:
                    model.load_state_dict(weights)
                except RuntimeError as error:
                    raise InputError(f"{self.run}: step {step} is of another detector, remove its snapshot") from error
                mean = loss_over_all(model, tracked(self.examples, f"{self.run.name}, step {step}"))
                row = Row(step, self.data, **asdict(mean), data_digest=data_digest, weights_digest=digest)
                loss_all.record(self.run, row)

    def _weights(self) -> dict[int, Callable[[], dict[str, Tensor]]]:
        """Step -> what reads its weights."""
        found: dict[int, Callable[[], dict[str, Tensor]]] = {
            step: partial(snapshots.load, path) for step, path in snapshots.found(self.run).items()
        }
        newest = checkpoint.load(self.run)
        if newest is not None:
            found.setdefault(newest["step"], partial(dict, newest["model"]))
        return found

    def _warn_of_others(self, digest: str, before: Sequence[Row], after: Sequence[Row]) -> None:
        """A change of data or weights since they were measured must not go unseen."""
        path = self.run / loss_all.NAME
        others = [row for row in before if row.data == self.data and row.data_digest != digest]
        if others:
            warnings.warn(
                f"{path}: {self.data} has other images, annotations or proposals now than when {len(others)} rows were "
                "measured; they are left out, and measured anew where there are weights",
                stacklevel=2,
            )
        renewed = [str(row.step) for row in before if row.data_digest == digest and row not in after]
        if renewed:
            warnings.warn(
                f"{path}: the weights of step {', '.join(renewed)} are others now than when they were measured; "
                "they are measured anew",
                stacklevel=2,
            )


def _print(curves: Sequence[Curve]) -> None:
    steps = sorted({step for curve in curves for step in curve.losses})
    of = sorted({curve.data for curve in curves})
    names = labels([curve.run for curve in curves])
    if len(of) > 1:  # then the columns cannot be compared, and each says what it is of
        names = [f"{name}\n{curve.data}" for name, curve in zip(names, curves, strict=True)]
    table = Table("SGD step", title=f"mean loss per RoI over all RoIs of {', '.join(of)}")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for step in steps:
        table.add_row(str(step), *(f"{c.losses[step]:.4f}" if step in c.losses else "" for c in curves))
    console = make_console()
    if not console.is_terminal:  # a file has room for every column
        console.width = max(console.width, 20 * (len(names) + 1))
    console.print(table)
