"""What became of the arms: the figures of each run, and of each arm over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from ohem.errors import InputError
from ohem.experiments.statistics import Difference, Mean, mean_of, paired
from ohem.training.metrics import NAME as METRICS
from ohem.training.metrics import read_metrics
from ohem.training.report import read_report

# Steps whose mined sets are described: the last quarter of a run.
LAST = 0.25


@dataclass(frozen=True)
class Outcome:
    """One run, evaluated.

    Args:
        map: 0-100, of whichever metric.
        ap: the same of each class; None for a class without objects.
        loss: mean loss per RoI over all RoIs of the training images, if it was asked for.
        seconds: median of its training steps.
        mined: means over the last quarter of the training, of the numbers in metrics.csv.
        curve: (step, training loss).
    """

    map: float | None
    ap: Mapping[str, float | None]
    loss: float | None
    seconds: float
    mined: Mapping[str, float]
    curve: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Summary:
    """The runs of an arm, over its seeds."""

    name: str
    about: str
    runs: Sequence[Outcome]

    @property
    def map(self) -> Mean:
        return mean_of(self.maps)

    @property
    def maps(self) -> list[float]:
        return [run.map or 0.0 for run in self.runs]

    @property
    def loss(self) -> Mean | None:
        losses = [run.loss for run in self.runs if run.loss is not None]
        return mean_of(losses) if losses else None

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    def mined(self, name: str) -> float | None:
        """Mean over the seeds of a number of metrics.csv; None where no run has it."""
        values = [run.mined[name] for run in self.runs if name in run.mined]
        return fmean(values) if values else None

    def against(self, base: "Summary") -> Difference:
        """Seed by seed."""
        return paired(self.maps, base.maps)

    def ap(self, name: str) -> float:
        """Mean over the seeds, of the class `name`."""
        return fmean(run.ap[name] or 0.0 for run in self.runs)

    def gains(self, base: "Summary") -> list[tuple[str, float]]:
        """Of each class with objects, highest gain in AP first."""
        names = [name for name, value in self.runs[0].ap.items() if value is not None]
        gained = {name: fmean(_gains(name, self.runs, base.runs)) for name in names}
        return sorted(gained.items(), key=lambda item: -item[1])


def read_outcome(run: Path, file: Path) -> Outcome:
    """The run in the folder `run`, whose evaluation is in `file`; InputError where either is damaged."""
    report = read_report(file)
    rows = read_metrics(run)
    if not rows:
        raise InputError(f"{run / METRICS} is missing or has no row: remove {run}, and the same line trains it again")
    last = rows[-max(1, round(LAST * len(rows))) :]
    columns = [name for name in last[0] if all(row[name] for row in last)] if last else []
    return Outcome(
        map=report["map"],
        ap=report["ap"],
        loss=report.get("loss_all_rois"),
        seconds=median(float(row["seconds"]) for row in rows),
        mined={name: fmean(float(row[name]) for row in last) for name in columns},
        curve=[(int(row["step"]), float(row["loss"])) for row in rows],
    )


def _gains(name: str, arm: Sequence[Outcome], base: Sequence[Outcome]) -> list[float]:
    return [(a.ap[name] or 0.0) - (b.ap[name] or 0.0) for a, b in zip(arm, base, strict=True)]
