"""What `ohem report` knows of one run: its mining log, its detections and their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ohem.config.recipe_file import NAME as RECIPE
from ohem.config.recipe_file import read_run
from ohem.config.schema import Recipe
from ohem.data.dataset import DetectionSet
from ohem.data.sources import open_dataset
from ohem.errors import InputError
from ohem.evaluation.evaluate import detect_all, load_detector
from ohem.evaluation.score_report import score, usual_metric
from ohem.inputs.examples import open_recipe_data, open_training_data
from ohem.insight.report.mining_facts import MiningFacts, read_mining
from ohem.insight.results_file import read_detections
from ohem.metrics.error_types import ErrorTypes, error_types
from ohem.training.run_folder import check_sources

MOST_ROWS = 6
"""RoIs of each moment in the report."""


@dataclass(frozen=True)
class RunFacts:
    """A run as the report shows it."""

    name: str
    sampler: str
    """Name of the sampler; empty if it is not known."""
    mining: MiningFacts | None
    train: DetectionSet | None
    """The training images, for pictures; None if they are not known, or not here."""
    test: DetectionSet
    detections: Sequence[dict[str, Tensor]]
    """Detections in the images of `test`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..K."""
        return self.test.classes

    @cached_property
    def scores(self) -> dict[str, Any]:
        """`metric`, `map` and `ap` of each class, as in RUN/eval.json."""
        return score(self.detections, self.test, usual_metric(self.test))[0]

    @cached_property
    def errors(self) -> ErrorTypes:
        """Types of the errors of the detections."""
        targets = (self.test.target(i) for i in range(len(self.test)))
        return error_types(self.detections, targets, classes=self.classes)

    @cached_property
    def images(self) -> dict[str, int]:
        """Name of a training image in the mining log -> its index in `train`."""
        return {} if self.train is None else {name: index for index, name in enumerate(self.train.ids)}


def read_runs(runs: Sequence[Path], sources: Sequence[str], detections: Path | None) -> list[RunFacts]:
    """Reads the runs, and detects in the test images.

    Args:
        runs: folders of `ohem train`, or others with a mining log.
        sources: test data; default: those of each run.
        detections: detections of the one run, in COCO's result format, instead of those of its newest checkpoint.

    Raises:
        InputError: a folder is no run, data or detections are missing, or the runs are of other classes.
    """
    if not runs:
        raise InputError("ohem report needs the folder of a run: name one")
    if detections is not None and (len(runs) > 1 or not sources):
        raise InputError("--detections are those of one run in the images of --data: name one run, and its data")
    names = _names(runs)
    facts = [
        _of_run(run, name, sources) if detections is None else _of_file(run, name, sources, detections)
        for run, name in zip(runs, names, strict=True)
    ]
    for other in facts[1:]:
        if other.classes != facts[0].classes or other.test.ids != facts[0].test.ids:
            raise InputError(
                f"{other.name} and {facts[0].name} have other classes or test images: make a report of each, or name "
                "data for both with --data"
            )
    return facts


def _names(runs: Sequence[Path]) -> list[str]:
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _of_run(run: Path, name: str, sources: Sequence[str]) -> RunFacts:
    if not (run / RECIPE).exists():
        raise InputError(
            f"{run} has no {RECIPE}, so its detections are not known: give them with --detections FILE.json and --data"
        )
    mining = read_mining(run, MOST_ROWS)
    model, recipe, _ = load_detector(run)
    if not sources:
        check_sources(run, recipe.data.test)
    test = open_recipe_data(recipe, sources or recipe.data.test, "--data")
    detections, _ = detect_all(model, test, recipe)
    return RunFacts(name, recipe.sampler.name, mining, _training_data(recipe), test, detections)


def _of_file(run: Path, name: str, sources: Sequence[str], path: Path) -> RunFacts:
    mining = read_mining(run, MOST_ROWS)
    if mining is None:
        raise InputError(f"{run} has no mining log (rows.parquet, or mining/rows.parquet): name its folder")
    test = open_dataset(sources)
    detections, _ = read_detections(path, test)
    train = _training_data(read_run(run)) if (run / RECIPE).exists() else None
    return RunFacts(name, "", mining, train, test, detections)


def _training_data(recipe: Recipe) -> DetectionSet | None:
    """Returns the training data for pictures; a report is made without pictures where they have moved."""
    try:
        return open_training_data(recipe)
    except InputError:
        return None
