"""Folds: each image is judged by a detector that was trained on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ohem.config.schema import Recipe
from ohem.data.dataset import DetectionSet
from ohem.errors import InputError
from ohem.evaluation.evaluate import detect_images, load_detector
from ohem.experiments.commands import propose_command, train_command
from ohem.experiments.runner import Job, run_jobs
from ohem.inputs.datasets import training_data
from ohem.inputs.examples import build_examples, build_pyramids
from ohem.insight.suspects.detections import NAME, read_detections, write_detections
from ohem.io.files import atomic_write
from ohem.io.progress import tracked
from ohem.training.fingerprints import digest_of_examples, digest_of_weights


def folds_of(names: Sequence[str], folds: int, seed: int) -> list[int]:
    """Returns the fold of each image, 0 to `folds` - 1: a function of the seed and the names, not of their order.

    The sizes of the folds differ by one at most.
    """
    order = sorted(range(len(names)), key=lambda i: (hashlib.sha256(f"{seed} {names[i]}".encode()).digest(), names[i]))
    result = [0] * len(names)
    for place, index in enumerate(order):
        result[index] = place % folds
    return result


def detect_out_of_fold(
    sources: Sequence[str],
    out: Path,
    name: str,
    recipe: Recipe,
    folds: int,
    jobs: int,
    cluster: str | None = None,
) -> tuple[DetectionSet, list[dict[str, Tensor]]]:
    """Trains a detector without each fold, OUT/fold-1 and so on, and detects objects in the images of the fold.

    Repeating it resumes it. The seed of the recipe gives the folds.

    Args:
        sources: data sets of one format.
        out: existing folder.
        name: name of the recipe.
        recipe: options of the trainings.
        folds: number of folds.
        jobs: number of trainings at the same time.
        cluster: address of a Dask scheduler whose workers do the trainings, as `ohem.cluster.executor_on` takes it.

    Returns:
        The data set and the detections in each of its images.

    Raises:
        InputError: the data or the options cannot be used, or a training failed.
    """
    recipe = replace(recipe, data=replace(recipe.data, train=tuple(sources), leave_out=None))
    data, recipe = training_data(recipe)
    if not 2 <= folds <= len(data):
        raise InputError(f"--folds {folds} is out of range: give 2 to {len(data)}, the number of images")
    if recipe.data.negatives:
        raise InputError("--data.negatives has no annotations to audit: leave it out")
    number_of = folds_of(data.ids, folds, recipe.solver.seed)
    runs: list[tuple[Path, list[int], Job]] = []
    for fold in range(folds):
        run, inside = out / f"fold-{fold + 1}", [i for i, number in enumerate(number_of) if number == fold]
        file = out / f"fold-{fold + 1}.txt"
        _write_names(file, [data.ids[i] for i in inside])
        # The classes are those of all images, since a fold may lack one.
        changed = replace(recipe, data=replace(recipe.data, leave_out=str(file)))
        runs.append((run, inside, Job(run, train_command(run, name, changed))))
    run_jobs([job for *_, job in runs], jobs, propose_command(sources, (), recipe.proposals), cluster)
    detections: dict[int, dict[str, Tensor]] = {}
    for run, inside, _ in runs:
        detections.update(zip(inside, _detect(run, data.part(inside)), strict=True))
    return data, [detections[i] for i in range(len(data))]


def _write_names(file: Path, names: Sequence[str]) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _detect(run: Path, part: DetectionSet) -> list[dict[str, Tensor]]:
    """Returns the detections of `run` in the images of its fold; keeps them in the folder of the run."""
    model, recipe, _ = load_detector(run)
    examples = build_examples(part, recipe)
    made_of = f"{digest_of_weights(model.state_dict())} {digest_of_examples(examples)} {recipe.test}"
    path = run / NAME
    try:
        return read_detections(path, made_of)
    except InputError:  # it is missing, or of an earlier training
        pictures = tracked(build_pyramids(examples, recipe), f"detecting without {run.name}")
        detections = list(detect_images(model, pictures))
        write_detections(path, detections, made_of)
        return detections
