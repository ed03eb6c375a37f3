"""`ohem loss`: measures the loss over all RoIs at every snapshot of runs (figure 3 of the paper)."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from rich.table import Table
from torch import Tensor

from ohem.config.recipe_file import read_run
from ohem.errors import InputError
from ohem.evaluation.evaluate import of_processes
from ohem.experiments import charts
from ohem.inputs.examples import build_examples, open_recipe_data, open_training_data
from ohem.io.console import make_console
from ohem.io.files import check_output, remove_leftovers
from ohem.models.build import as_fast_rcnn, build_model
from ohem.samplers import AllSampler
from ohem.training import checkpoint, roi_loss, snapshots
from ohem.training.distributed import Fabric, first_process_first, of_first
from ohem.training.fingerprints import digest_of_examples, digest_of_weights
from ohem.training.roi_loss import LossRow, loss_over_all


@dataclass(frozen=True)
class Curve:
    """The losses of one run."""

    run: Path
    data: str
    """The sources as the user gave them."""
    losses: dict[int, float]
    """Step -> mean loss per RoI over all RoIs, first step first."""


def compare_losses(
    runs: Sequence[Path],
    sources: Sequence[str] = (),
    plot: Path | None = None,
    names: Mapping[str, str] | None = None,
    devices: str = "1",
) -> list[Curve]:
    """Measures missing losses, writes them into RUN/loss_all.csv, prints a table of all runs and draws a chart.

    Args:
        runs: folders of the runs.
        sources: data to measure on; by default the training data of each run.
        plot: file of the chart, .svg or .png; None: no chart.
        names: folder name of a run without its -SEED -> its label in the chart.
        devices: number of processes that share the images; the first one writes. With torchrun, those that it started.

    Returns:
        The losses of each run.

    Raises:
        InputError: a run, the data or `plot` cannot be used.
    """
    if not runs:
        raise InputError("no run is given: name the folder of one or more runs")
    twice = next((run for run in runs if runs.count(run) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice: name each run once")
    if plot is not None:
        charts.check_place(plot)
    # Nothing is trained here, so the processes and the precision of the trainings do not matter.
    with of_processes(runs[0], devices) as (fabric, _):
        # All are opened before the first is measured, which may take long.
        opened = first_process_first(fabric, lambda: [_OpenRun(run, sources) for run in runs])
        if plot is not None:
            check_output(plot, chain.from_iterable(run.inputs for run in opened))
        curves = [run.measure(fabric) for run in opened]
        if fabric.is_global_zero:
            _report(curves, plot, names or {})
    return curves


def _report(curves: Sequence[Curve], plot: Path | None, names: Mapping[str, str]) -> None:
    _print(curves)
    if plot is not None:
        remove_leftovers(plot.parent)
        charts.save(charts.loss_curves(by_method(curves, names)), plot)
        print(f"{plot}: the chart")


def by_method(curves: Sequence[Curve], known: Mapping[str, str]) -> dict[str, list[list[tuple[int, float]]]]:
    """Groups runs into methods: runs whose names differ only in a trailing number, -SEED, belong to one method.

    Args:
        curves: the runs.
        known: folder name of a run without its -SEED -> label of the method.

    Returns:
        Label of a method -> the lines of its runs, pairs (step, loss).
    """
    names = labels([curve.run for curve in curves])
    stems = [re.sub(r"-\d+$", "", name) for name in names]
    methods: dict[str, list[list[tuple[int, float]]]] = {}
    for name, stem, curve in zip(names, stems, curves, strict=True):
        seeds = stems.count(stem)
        label = known.get(stem, stem if seeds > 1 else name)
        methods.setdefault(f"{label} ({seeds} runs)" if seeds > 1 else label, []).append(list(curve.losses.items()))
    return methods


def labels(runs: Sequence[Path]) -> list[str]:
    """Returns the names of the folders of runs, or their paths if two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


class _OpenRun:
    """A run with weights, and the data to measure it on."""

    def __init__(self, run: Path, sources: Sequence[str]) -> None:
        self.run, self.recipe = run, read_run(run)
        if not snapshots.list_snapshots(run) and not checkpoint.exists(run):
            raise InputError(f"{run} has no checkpoint yet: let `ohem train` reach its first (run.checkpoint_every)")
        self.data = " ".join(sources or self.recipe.data.train + self.recipe.data.negatives)
        data = open_recipe_data(self.recipe, sources, "--data") if sources else open_training_data(self.recipe)
        self.inputs = list(data.files())
        self.examples = build_examples(data, self.recipe)

    def measure(self, fabric: Fabric) -> Curve:
        """Returns the losses at every snapshot and the newest checkpoint, and those that the training measured."""
        digest = digest_of_examples(self.examples)
        before = of_first(fabric, roi_loss.read(self.run))
        self._measure_missing(digest, before, fabric)
        after = of_first(fabric, roi_loss.read(self.run))
        if fabric.is_global_zero:
            self._warn_of_others(digest, before, after)
        rows = [row for row in after if row.data_digest == digest]
        return Curve(self.run, self.data, {row.step: row.loss for row in sorted(rows, key=lambda row: row.step)})

    def _measure_missing(self, data_digest: str, known: Sequence[LossRow], fabric: Fabric) -> None:
        model = as_fast_rcnn(build_model(self.recipe, AllSampler()), "ohem loss").to(fabric.device)
        measured = {(row.step, row.data_digest, row.weights_digest) for row in known}
        for step, load in self._weights().items():
            weights = load()
            digest = digest_of_weights(weights)
            if (step, data_digest, digest) in measured:
                continue
            try:
                model.load_state_dict(weights)
            except RuntimeError as error:
                raise InputError(f"{self.run}: step {step} is of another detector: remove its snapshot") from error
            mean = loss_over_all(model, self.examples, f"{self.run.name}, step {step}", fabric)
            if fabric.is_global_zero:
                row = LossRow(step, self.data, **asdict(mean), data_digest=data_digest, weights_digest=digest)
                roi_loss.add_row(self.run, row)

    def _weights(self) -> dict[int, Callable[[], dict[str, Tensor]]]:
        """Returns step -> function that reads its weights."""
        loaders: dict[int, Callable[[], dict[str, Tensor]]] = {
            step: partial(snapshots.load, path) for step, path in snapshots.list_snapshots(self.run).items()
        }
        newest = checkpoint.load(self.run)
        if newest is not None:
            loaders.setdefault(newest["step"], partial(dict, newest["model"]))
        return loaders

    def _warn_of_others(self, digest: str, before: Sequence[LossRow], after: Sequence[LossRow]) -> None:
        """Warns if data or weights have changed since they were measured."""
        path = self.run / roi_loss.NAME
        others = [row for row in before if row.data == self.data and row.data_digest != digest]
        if others:
            warnings.warn(
                f"{path}: {self.data} has other images, annotations or proposals now than when {len(others)} rows were "
                "measured; they are left out, and measured again where there are weights",
                stacklevel=2,
            )
        renewed = [str(row.step) for row in before if row.data_digest == digest and row not in after]
        if renewed:
            warnings.warn(
                f"{path}: the weights of step {', '.join(renewed)} have changed since they were measured; "
                "they are measured again",
                stacklevel=2,
            )


def _print(curves: Sequence[Curve]) -> None:
    steps = sorted({step for curve in curves for step in curve.losses})
    sources = sorted({curve.data for curve in curves})
    names = labels([curve.run for curve in curves])
    if len(sources) > 1:  # the columns cannot be compared: each names its data
        names = [f"{name}\n{curve.data}" for name, curve in zip(names, curves, strict=True)]
    table = Table("SGD step", title=f"mean loss per RoI over all RoIs of {', '.join(sources)}")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for step in steps:
        table.add_row(str(step), *(f"{curve.losses[step]:.4f}" if step in curve.losses else "" for curve in curves))
    console = make_console()
    if not console.is_terminal:  # a file has room for every column
        console.width = max(console.width, 20 * (len(names) + 1))
    console.print(table)
