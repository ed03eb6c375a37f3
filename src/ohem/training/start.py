"""From the command line to the training loop: data, proposals and run folder first, processes last."""

import os
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from ohem.data.annotation import class_name
from ohem.data.dataset import DetectionSet
from ohem.data.findings import first_of
from ohem.detection.weights import check_source
from ohem.errors import InputError
from ohem.files import digest_of_file
from ohem.training import checkpoint
from ohem.training.build import (
    build_data,
    build_examples,
    build_proposals,
    check,
    check_cached,
    check_objects,
    with_classes,
)
from ohem.training.config import Recipe
from ohem.training.digests import digest_of_proposals, digests_of_data
from ohem.training.launch import launched
from ohem.training.loop import train
from ohem.training.runs import check_run, open_run, sole_writer
from ohem.training.signals import Stopped

LOST = ("Connection reset by peer", "Connection closed by peer", "Broken pipe")
"""What the backends of torch.distributed say where another process has ended."""


def start(run: Path, name: str, recipe: Recipe, devices: str | None = None) -> None:
    """Trains `recipe`, named `name`, into the folder `run`, or resumes it.

    Raises:
        InputError: the data, the options or the folder do not fit, or another process writes the folder.
        SystemExit: with 128 + the signal's number, after a signal.
    """
    if devices is not None:
        recipe = replace(recipe, run=replace(recipe.run, devices=devices))
    data, recipe = training_data(recipe)
    if recipe.model.weights != "none" and not checkpoint.exists(run):
        check_source(recipe.model.weights)
    if recipe.data.test:
        build_data(  # its defects should not wait until evaluation
            recipe.data.test, recipe.data.classes, "--data.test", skip_others=recipe.data.skip_others
        )
    first = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0
    if first:
        check_run(run, name, recipe)
    # Of several machines that share the folder, one holds the lock for all.
    main = first and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    with sole_writer(run) if main else nullcontext():
        if first:
            run.mkdir(parents=True, exist_ok=True)
            _prepare(run, name, recipe, data)
        _train(run, recipe, data)


def _train(run: Path, recipe: Recipe, data: DetectionSet) -> None:
    with launched(recipe.run) as fabric:
        examples = build_examples(data, build_proposals(data, recipe.proposals), recipe)
        try:
            train(recipe, run, examples, fabric)
        except Stopped as stop:
            if fabric.is_global_zero:
                print(f"ohem: {stop}")
            raise SystemExit(128 + stop.signum) from None
        except RuntimeError as error:
            if fabric.world_size > 1 and any(words in str(error) for words in LOST):
                raise InputError(
                    f"another process of the training of {run} has ended, and this one ends with it: the same line "
                    "goes on from the last checkpoint"
                ) from error
            raise


def _prepare(run: Path, name: str, recipe: Recipe, data: DetectionSet) -> None:
    """Makes the proposals, and writes into the folder `run` what it is made of."""
    check_run(run, name, recipe)  # once more: another process may have written it before this one had the lock
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        check_cached(data, recipe.proposals)
    made_of = asdict(digests_of_data(data))
    open_run(run, name, recipe, made_of | _digest_of_weights(recipe))  # changed images are said before hours of search
    proposals = build_proposals(data, recipe.proposals)
    made_of["proposals"] = digest_of_proposals(data.ids, proposals, recipe.proposals.top)
    open_run(run, name, recipe, made_of | _digest_of_weights(recipe))


def _digest_of_weights(recipe: Recipe) -> dict[str, str]:
    """Of the file of initial weights; nothing where there is no such file, as for those that torchvision has."""
    path = Path(recipe.model.weights)
    return {"weights": digest_of_file(path)} if path.is_file() else {}


def training_data(recipe: Recipe) -> tuple[DetectionSet, Recipe]:
    """The data set that `recipe` is to be trained on, and the recipe with the classes of it.

    Raises:
        InputError: the options or the data do not fit, or there is no object.
    """
    check(recipe)
    skip = recipe.data.skip_others or bool(recipe.data.classes)
    data = build_data(recipe.data.train, recipe.data.classes, "--data.train", skip_others=skip)
    check_objects(data, recipe.data.train, "annotate some, or name another split")
    absent = [name for name in recipe.data.classes if not data.objects()[class_name(name)]]
    if absent:
        names = ", ".join(recipe.data.train)
        warnings.warn(f"{names} has no object of {len(absent)} of the classes: {first_of(absent)}", stacklevel=2)
    return data, with_classes(recipe, data.classes)
