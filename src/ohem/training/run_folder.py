"""The folder of a run: who may write it, and what must agree for the run to be resumed."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ohem.config.recipe_file import NAME, RecipeFile, read_recipe_file, write_recipe_file
from ohem.config.schema import Recipe
from ohem.config.validation import flatten_options
from ohem.errors import InputError
from ohem.io.archives import exists
from ohem.io.files import is_leftover, remove_leftovers
from ohem.io.locks import NAME as LOCK
from ohem.io.locks import locked
from ohem.training import checkpoint
from ohem.training.logs.metrics_log import has_rows
from ohem.training.snapshots import FOLDER as SNAPSHOTS

# Options that may differ when a run is resumed: the machine, logs, the number of steps, and the test.
FREE = (
    "run.", "test.", "solver.steps", "data.test", "data.skip_others", "data.workers", "proposals.jobs",
    "proposals.folder", "proposals.width",  # the proposals themselves are compared by digest
)  # fmt: skip
# Places of data may differ too: the data are compared by digest.
PLACES = ("data.train", "data.negatives", "data.leave_out", "proposals.files", "proposals.edge_model")
PARTS = {"images": "image files", "annotations": "annotations", "proposals": "proposals", "weights": "initial weights"}
"""What a run is made of, with its name in messages."""


@contextmanager
def sole_writer(folder: Path, kind: str = "the run") -> Iterator[None]:
    """Makes `folder`, keeps other processes from writing it, and removes temporary files of killed processes.

    Args:
        folder: the folder.
        kind: what the message calls it.

    Raises:
        InputError: another process writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, f"{kind} {folder}"):
            for place in (folder, folder / SNAPSHOTS):
                remove_leftovers(place)
            yield
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def check_run(run: Path, name: str, recipe: Recipe) -> None:
    """Checks that `recipe`, named `name`, can be trained into the folder `run`; writes nothing.

    A folder in which no step was trained yet counts as empty.

    Raises:
        InputError: the folder holds a run of another recipe, or something that is not a run.
    """
    if _has_steps(run):
        before = read_recipe_file(run)
        changed = [
            (key, old, new)
            for (key, old), (_, new) in zip(flatten_options(before.recipe), flatten_options(recipe), strict=True)
            if old != new and not key.startswith((*FREE, *PLACES)) and key != "model.weights"
        ]
        if changed:
            key, old, new = changed[0]
            raise InputError(
                f"{run} holds a run of recipe {before.name} with {key} {_show(old)}, not {_show(new)} as for {name}: "
                "name another run folder, or repeat the command that made it"
            )
    elif run.exists() and not (run / NAME).exists() and (not run.is_dir() or not _is_empty(run)):
        raise InputError(f"{run} exists and is not a run (it has no {NAME}): name another run folder")


def create_or_resume(run: Path, name: str, recipe: Recipe, made_of: Mapping[str, str]) -> None:
    """Writes recipe.yaml of a new run, or checks that a run to be resumed was made of the same data.

    Args:
        run: an existing folder that passes `check_run`.
        name: name of the recipe.
        recipe: all options.
        made_of: digests by the keys of `PARTS`; an empty digest is unknown.

    Raises:
        InputError: the run was made of other images, annotations, proposals or initial weights.
    """
    if _has_steps(run):
        before = read_recipe_file(run)
        _check_same(run, before, recipe, made_of)
        made_of = {part: made_of.get(part) or before.made_of.get(part, "") for part in PARTS}
    write_recipe_file(run, RecipeFile(name, recipe, {part: digest for part, digest in made_of.items() if digest}))


def check_made_of(run: Path, recipe: Recipe, made_of: Mapping[str, str]) -> None:
    """Checks that a run to be resumed was made of the same data, as `create_or_resume` does; writes nothing."""
    if _has_steps(run):
        _check_same(run, read_recipe_file(run), recipe, made_of)


def check_sources(run: Path, sources: Sequence[str]) -> None:
    """Raises `InputError` where a source that the recipe of `run` names is relative, and is not here."""
    for source in sources:
        place = source.rpartition(":")[0]
        if not Path(place).is_absolute() and not exists(place):
            raise InputError(
                f"{source}, which the recipe of {run} names, does not exist: it is relative to the folder in which the "
                "run was trained, so change to that folder, or name the data with --data SOURCE"
            )


def _has_steps(run: Path) -> bool:
    """Returns whether a step was trained."""
    return (run / NAME).exists() and (checkpoint.exists(run) or has_rows(run))


def _is_empty(run: Path) -> bool:
    """Returns whether it holds nothing but temporary files of killed processes."""
    return all(path.name == LOCK or is_leftover(path) for path in run.iterdir())


def _check_same(run: Path, before: RecipeFile, recipe: Recipe, made_of: Mapping[str, str]) -> None:
    if not before.made_of:
        warnings.warn(
            f"{run} was made by a version without digests of the data: whether they have changed is not checked",
            stacklevel=3,
        )
    for part, title in PARTS.items():
        old, new = before.made_of.get(part), made_of.get(part)
        if part == "weights" and before.recipe.model.weights == recipe.model.weights:
            continue  # a resumed run does not read them
        if (part == "weights" and old != new) or (old and new and old != new):
            where = recipe.model.weights if part == "weights" else ", ".join(recipe.data.train + recipe.data.negatives)
            raise InputError(
                f"the {title} of {where} are not those that {run} was made of: restore them, or name another run folder"
            )


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "not given" if value is None else str(value)
