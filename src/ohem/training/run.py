"""`ohem train`: opens data, proposals and the run folder, then starts the processes that train."""

import os
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from ohem.config.schema import Recipe
from ohem.data.dataset import DetectionSet
from ohem.detection.weights import check_source
from ohem.errors import InputError
from ohem.inputs.datasets import training_data
from ohem.inputs.examples import build_examples, open_recipe_data
from ohem.inputs.proposals import build_proposals, check_cached, check_ids, most_proposals
from ohem.io.digests import digest_of_file
from ohem.processes import Stopped
from ohem.training import checkpoint
from ohem.training.distributed import launched
from ohem.training.fingerprints import digest_of_proposals, digests_of_data
from ohem.training.logs.loggers import check_loggers
from ohem.training.logs.mining import check_mining_log
from ohem.training.loop import train
from ohem.training.run_folder import check_made_of, check_run, create_or_resume, sole_writer

LOST = ("Connection reset by peer", "Connection closed by peer", "Broken pipe")
"""Messages of the backends of torch.distributed where another process has ended."""


def run_training(run: Path, name: str, recipe: Recipe, devices: str | None = None) -> None:
    """Trains `recipe` into the folder `run`, or resumes the run.

    Args:
        run: folder of the run.
        name: name of the recipe.
        recipe: all options.
        devices: replaces `recipe.run.devices` if given.

    Raises:
        InputError: the data, the options or the folder do not fit, or another process writes the folder.
        SystemExit: with 128 + its number after a signal.
    """
    if devices is not None:
        recipe = replace(recipe, run=replace(recipe.run, devices=devices))
    data, recipe = training_data(recipe)
    if recipe.model.weights != "none" and not checkpoint.exists(run):
        check_source(recipe.model.weights)
    if recipe.data.test:
        test = open_recipe_data(recipe, recipe.data.test, "--data.test")  # faults are reported before the training
        check_ids(data, test, recipe.proposals)
    first = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0
    if first:
        check_loggers(recipe.run.loggers)
        check_mining_log(recipe)
        check_run(run, name, recipe)
        for source in data.sources[len(recipe.data.train) :]:
            print(f"{source}: {len(source.ids)} images without an object", flush=True)
        if data.background:
            regions = sum(map(len, data.background.values()))
            print(f"{regions} regions of {len(data.background)} images are always trained on as background", flush=True)
    # Where several machines share the folder, one process holds the lock for all.
    main = first and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0
    with sole_writer(run) if main else nullcontext():
        if first:
            run.mkdir(parents=True, exist_ok=True)
            _prepare(run, name, recipe, data)
        _train(run, recipe, data)


def _train(run: Path, recipe: Recipe, data: DetectionSet) -> None:
    with launched(recipe.run) as fabric:
        examples = build_examples(data, recipe)
        try:
            train(recipe, run, examples, fabric)
        except Stopped as stop:
            if fabric.is_global_zero:
                print(f"ohem: {stop}")
            raise SystemExit(128 + stop.signum) from None
        except RuntimeError as error:
            if fabric.world_size > 1 and any(message in str(error) for message in LOST):
                raise InputError(
                    f"another process of the training of {run} has ended, so this one ends too: repeat the command to "
                    "resume from the last checkpoint"
                ) from error
            raise


def _prepare(run: Path, name: str, recipe: Recipe, data: DetectionSet) -> None:
    """Makes the proposals, and writes the digests of the data into recipe.yaml of the folder `run`."""
    check_run(run, name, recipe)  # again: another process may have written the folder before this one had the lock
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        check_cached(data, recipe.proposals)
    made_of = asdict(digests_of_data(data))
    # It reports changed images before hours of selective search, and leaves recipe.yaml as it is: proposals may differ.
    check_made_of(run, recipe, made_of | _digest_of_weights(recipe))
    proposals = build_proposals(data, recipe.proposals)
    made_of["proposals"] = digest_of_proposals(data.ids, proposals, most_proposals(recipe.proposals))
    create_or_resume(run, name, recipe, made_of | _digest_of_weights(recipe))


def _digest_of_weights(recipe: Recipe) -> dict[str, str]:
    """Returns the digest of the file of initial weights; nothing where they are not a file."""
    path = Path(recipe.model.weights)
    return {"weights": digest_of_file(path)} if path.is_file() else {}
