"""`ohem eval --curve`: the mAP of a run at some of its snapshots, and RUN/map_curve.json, which keeps it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ohem.config.schema import MetricName, TestConfig
from ohem.data.dataset import DetectionSet
from ohem.detection.detector import Detector
from ohem.errors import InputError
from ohem.evaluation.evaluate import detect_shared, load_detector, of_processes
from ohem.evaluation.report import DIGEST, digest_of_content, is_report, read_json, read_report
from ohem.evaluation.report import NAME as REPORT
from ohem.evaluation.score_report import score, usual_metric
from ohem.inputs.examples import build_examples, build_pyramids, open_recipe_data
from ohem.io.console import make_console, make_table
from ohem.io.files import check_output, remove_leftovers
from ohem.io.json_files import write_json
from ohem.io.numbers import format_number
from ohem.training import snapshots
from ohem.training.distributed import Fabric, first_process_first, of_first
from ohem.training.fingerprints import digest_of_examples, digest_of_weights
from ohem.training.run_folder import check_sources

NAME = "map_curve.json"


@dataclass(frozen=True)
class MapPoint:
    """The mAP at a step, 0-100 or None if the data have no object, and the digest of the weights."""

    step: int
    map: float | None
    weights: str


@dataclass(frozen=True)
class MapCurve:
    """The mAP of a run at some of its steps.

    Args:
        metric: what was measured.
        test: test options of the measurement.
        data: digest of the images, ground truth and proposals that it was measured on.
        points: first step first; the last one is the newest checkpoint.
    """

    metric: MetricName
    test: dict[str, Any]
    data: str
    points: tuple[MapPoint, ...] = ()

    def is_like(self, other: "MapCurve") -> bool:
        """Returns whether both were measured in the same way on the same data."""
        return replace(self, points=()) == replace(other, points=())


def read_curve(path: Path) -> MapCurve | None:
    """Reads a map_curve.json; returns None where it does not exist.

    Raises:
        InputError: the file is damaged.
    """
    remedy = "remove it, and the snapshots are evaluated again"
    if not path.exists():
        return None
    content = read_json(path, remedy)
    try:
        written = content.pop(DIGEST)
        if written != digest_of_content(content):
            raise ValueError("its content does not match its digest")
        return MapCurve(**content | {"points": tuple(MapPoint(**point) for point in content["points"])})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = error if isinstance(error, ValueError) else "its fields are others"
        raise InputError(f"{path} is damaged ({why}): {remedy}") from error


def write_curve(path: Path, curve: MapCurve) -> None:
    """Writes `curve` to `path`."""
    remove_leftovers(path.parent)
    content = asdict(curve)
    write_json(path, content | {DIGEST: digest_of_content(content)})


def spread(steps: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` of `steps`, which increase: the last one, and those nearest to equal intervals."""
    if len(steps) <= count:
        return list(steps)
    wanted = [steps[-1] * i / count for i in range(1, count + 1)]
    return sorted({min((abs(step - place), step) for step in steps)[1] for place in wanted})


def evaluate_curve(
    run: Path,
    count: int,
    sources: Sequence[str] = (),
    metric: MetricName | None = None,
    test: TestConfig | None = None,
    devices: str = "1",
) -> MapCurve:
    """Evaluates snapshots of `run` and its newest checkpoint, prints a table and writes RUN/map_curve.json.

    Weights whose mAP is in RUN/map_curve.json or RUN/eval.json, by the same metric and test options and on the same
    data, are not evaluated again. The file is written after each evaluation.

    Args:
        run: folder of the run.
        count: number of steps to evaluate, evenly spread; all if there are fewer. The last one is the checkpoint.
        sources: data sets; the test data of the run if empty.
        metric: by default the metric of the data's format.
        test: replaces the test options of the recipe.
        devices: as of `evaluate_run`.

    Raises:
        InputError: the run, a snapshot, the data, `count` or `test` is unfit.
    """
    if count < 1:
        raise InputError(f"--curve {count} evaluates nothing: give 1 or more")
    with of_processes(run, devices) as (fabric, accelerator):
        return _evaluate(run, count, sources, metric, test, accelerator, fabric)


def _evaluate(
    run: Path,
    count: int,
    sources: Sequence[str],
    metric: MetricName | None,
    test: TestConfig | None,
    accelerator: str,
    fabric: Fabric,
) -> MapCurve:
    model, recipe, last = load_detector(run, test, accelerator)
    model.to(fabric.device)
    if not sources:
        check_sources(run, recipe.data.test)
    data = open_recipe_data(recipe, sources or recipe.data.test, "--data")
    check_output(run / NAME, data.files())
    examples = first_process_first(fabric, lambda: build_examples(data, recipe))
    test_options = json.loads(json.dumps(asdict(recipe.test)))  # a file has lists where the recipe has tuples
    curve = MapCurve(metric or usual_metric(data), test_options, digest_of_examples(examples))
    files = {step: path for step, path in snapshots.list_snapshots(run).items() if step < last}
    steps = spread([*files, last], count)
    points = {point.step: point for point in of_first(fabric, [*_known_points(run, curve)]) if point.step in steps}
    first = fabric.is_global_zero
    for step in reversed(steps):  # the model has the weights of the checkpoint already
        if step != last:
            _load_snapshot(model, files[step])
        weights = digest_of_weights(model.state_dict())
        if step not in points or points[step].weights != weights:
            pyramids = build_pyramids(examples, recipe)
            detections = detect_shared(model, pyramids, f"{run.name}, step {step}", fabric)
            points[step] = MapPoint(step, _map(detections, data, curve.metric) if first else None, weights)
        curve = replace(curve, points=tuple(points[step] for step in sorted(points)))
        if first:
            write_curve(run / NAME, curve)
    if first:
        _print(curve, run)
    return curve


def _known_points(run: Path, curve: MapCurve) -> Iterator[MapPoint]:
    """Yields the points that were measured like `curve`: those of RUN/map_curve.json, then that of RUN/eval.json."""
    before = read_curve(run / NAME)
    if before is not None and before.is_like(curve):
        yield from before.points
    if is_report(run / REPORT):
        report = read_report(run / REPORT)
        if all(report.get(field) == getattr(curve, field) for field in ("metric", "test", "data")):
            yield MapPoint(report["step"], report["map"], report["weights"])


def _map(detections: list[dict[str, Tensor]], data: DetectionSet, metric: MetricName) -> float | None:
    figures, _ = score(detections, data, metric)
    value: float | None = figures["map"]
    return value


def _load_snapshot(model: Detector, path: Path) -> None:
    try:
        model.load_state_dict(snapshots.load(path))
    except RuntimeError as error:
        raise InputError(f"{path} is of another detector: remove it, and it is left out") from error


def _print(curve: MapCurve, run: Path) -> None:
    table = make_table("SGD step", f"mAP ({curve.metric})", title=run.name)
    for point in curve.points:
        table.add_row(str(point.step), "" if point.map is None else format_number(point.map))
    make_console().print(table)
