"""Results of runs, and of methods over their seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ohem.errors import InputError
from ohem.evaluation.map_curve import read_curve
from ohem.evaluation.report import read_report
from ohem.evaluation.time_to_map import CurvePoint, TimeToMap, mean_curve, seconds_until, time_to_map
from ohem.experiments.significance import Difference, Mean, mean_of, paired
from ohem.training.logs.metrics_log import NAME as METRICS
from ohem.training.logs.metrics_log import read_metrics

# Share of a run, at its end, whose mined RoIs are described.
LAST = 0.25
# Detectors whose mAP is below this are not trained yet: differences between them mean nothing.
UNTRAINED = 5.0


@dataclass(frozen=True)
class RunResult:
    """Results of one run.

    Args:
        map: mAP, 0-100, of the metric of the evaluation; None if the test data have no object.
        ap: AP of each class, 0-100; None for a class without objects.
        loss: mean loss per RoI over all RoIs of the training images, if the evaluation measured it.
        seconds: median of its training steps.
        mined: means over the last quarter of the training, of the columns of metrics.csv.
        curve: pairs (step, training loss).
        map_curve: mAP at the steps that were evaluated, first step first; the last point is the final evaluation.
        false_positives: number per image at 80 % recall; None if the detector does not have this recall, or an earlier
            version evaluated the run.
        background: share of background among the best detections of each class, as `background_shares` computes it;
            None for a class without objects. Empty if an earlier version evaluated the run.
    """

    map: float | None
    ap: Mapping[str, float | None]
    loss: float | None
    seconds: float
    mined: Mapping[str, float]
    curve: Sequence[tuple[int, float]]
    map_curve: Sequence[CurvePoint] = ()
    false_positives: float | None = None
    background: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodSummary:
    """Results of one method over its seeds.

    Args:
        name: name in tables.
        about: one line that describes the method.
        runs: results of its runs, one for each seed.
    """

    name: str
    about: str
    runs: Sequence[RunResult]

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
    def false_positives(self) -> Mean | None:
        """False positives per image at 80 % recall; None if they are not known of every seed."""
        numbers = [run.false_positives for run in self.runs if run.false_positives is not None]
        return mean_of(numbers) if len(numbers) == len(self.runs) else None

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def map_curve(self) -> list[CurvePoint]:
        """Mean of the curves of mAP of the seeds; fewer than two points where no snapshot was evaluated."""
        return mean_curve([run.map_curve for run in self.runs])

    def time_to_map(self, base: "MethodSummary") -> TimeToMap | None:
        """Computes when the method first has the final mAP of `base`; None if it has no curve of mAP."""
        return time_to_map([run.map_curve for run in self.runs], [run.map_curve for run in base.runs], base.map.mean)

    def mined(self, name: str) -> float | None:
        """Returns the mean over the seeds of a column of metrics.csv; None if no run has it."""
        values = [run.mined[name] for run in self.runs if name in run.mined]
        return fmean(values) if values else None

    def against(self, base: "MethodSummary") -> Difference:
        """Computes the difference in mAP from `base`, seed by seed."""
        return paired(self.maps, base.maps)

    def is_untrained(self, base: "MethodSummary") -> bool:
        """Returns whether both methods have so low an mAP that comparing them means nothing."""
        return max(self.map.mean, base.map.mean) < UNTRAINED

    def verdict(self, base: "MethodSummary") -> str:
        """Returns how the method compares with `base`, in a few words."""
        if self.is_untrained(base):
            return "not trained yet: train longer before comparing"
        return self.against(base).verdict()

    def ap(self, name: str) -> float:
        """Returns the AP of the class `name`, mean over the seeds."""
        return fmean(run.ap[name] or 0.0 for run in self.runs)

    def gains(self, base: "MethodSummary") -> list[tuple[str, float]]:
        """Returns the gain in AP over `base` of each class with objects, highest gain first."""
        names = [name for name, value in self.runs[0].ap.items() if value is not None]
        gains = {name: fmean(_gains(name, self.runs, base.runs)) for name in names}
        return sorted(gains.items(), key=lambda item: -item[1])


def read_result(run: Path, file: Path, curve: Path | None = None) -> RunResult:
    """Reads the results of a run.

    Args:
        run: folder of the run.
        file: report of its evaluation.
        curve: map_curve.json; None: the curve of mAP only has the final evaluation.

    Raises:
        InputError: a file is missing or damaged.
    """
    report = read_report(file)
    rows = read_metrics(run)
    if not rows:
        raise InputError(
            f"{run / METRICS} is missing or has no row: remove {run} and repeat the command, which trains it again"
        )
    last = rows[-max(1, round(LAST * len(rows))) :]
    columns = [name for name in last[0] if all(row[name] for row in last)] if last else []
    return RunResult(
        map=report["map"],
        ap=report["ap"],
        loss=report.get("loss_all_rois"),
        false_positives=report.get("false_positives_per_image"),
        background=report.get("background_share", {}),
        seconds=median(float(row["seconds"]) for row in rows),
        mined={name: fmean(float(row[name]) for row in last) for name in columns},
        curve=[(int(row["step"]), float(row["loss"])) for row in rows],
        map_curve=_map_curve(report, rows, curve),
    )


def _map_curve(report: Mapping[str, Any], rows: Sequence[Mapping[str, str]], file: Path | None) -> list[CurvePoint]:
    measured = read_curve(file) if file else None
    maps = {point.step: point.map for point in (measured.points if measured else ()) if point.step < report["step"]}
    maps[report["step"]] = report["map"]
    seconds = [(int(row["step"]), float(row["seconds"])) for row in rows]
    return [CurvePoint(step, seconds_until(step, seconds), value or 0.0) for step, value in maps.items()]


def _gains(name: str, runs: Sequence[RunResult], base: Sequence[RunResult]) -> list[float]:
    return [(run.ap[name] or 0.0) - (other.ap[name] or 0.0) for run, other in zip(runs, base, strict=True)]
