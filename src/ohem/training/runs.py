"""A run folder: the recipe it was made with, resolved, and what must agree for it to be resumed or evaluated."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints
from zlib import crc32

import yaml

from ohem.errors import InputError
from ohem.files import is_leftover, remove_leftovers, replacing
from ohem.locks import NAME as LOCK
from ohem.locks import locked
from ohem.training import checkpoint
from ohem.training.config import Recipe
from ohem.training.metrics import has_rows
from ohem.training.ranges import check_ranges, flat
from ohem.training.snapshots import FOLDER as SNAPSHOTS

NAME = "recipe.yaml"
# What may differ when a run goes on: the machine, how much is logged, how far it is to go, and how it is tested.
FREE = (
    "run.", "test.", "solver.steps", "data.test", "data.skip_others", "data.workers", "proposals.jobs",
    "proposals.folder",
)  # fmt: skip
# Where data lie may differ too: what they are is compared by digest.
PLACES = ("data.train", "proposals.files")
PARTS = {"images": "image files", "annotations": "annotations", "proposals": "proposals", "weights": "initial weights"}
"""What a run is made of, as messages name it."""


@contextmanager
def sole_writer(folder: Path, kind: str = "the run") -> Iterator[None]:
    """Makes `folder`, keeps other processes from writing it, and removes what killed ones left.

    Raises:
        InputError: another process writes it; `kind` is what the message calls it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, f"{kind} {folder}"):
            for each in (folder, folder / SNAPSHOTS):
                remove_leftovers(each)
            yield
    finally:
        with suppress(OSError):  # it has content, as it should
            folder.rmdir()


def check_run(run: Path, name: str, recipe: Recipe) -> None:
    """Checks that `recipe`, named `name`, can be trained into the folder `run`; writes nothing.

    A folder in which no step was trained yet, its first try having ended in bad input, counts as empty.

    Raises:
        InputError: the folder holds a run of another recipe, or something that is not a run.
    """
    if _is_under_way(run):
        before = _read(run)
        changed = [
            (key, old, new)
            for (key, old), (_, new) in zip(flat(asdict(before.recipe)), flat(asdict(recipe)), strict=True)
            if old != new and not key.startswith((*FREE, *PLACES)) and key != "model.weights"
        ]
        if changed:
            key, old, new = changed[0]
            raise InputError(
                f"{run} holds a run of recipe {before.name} with {key} {_show(old)}, not {_show(new)} as for {name}: "
                "name another run folder, or repeat the line that made it"
            )
    elif run.exists() and not (run / NAME).exists() and (not run.is_dir() or not _is_empty(run)):
        raise InputError(f"{run} exists and is not a run (it has no {NAME}): name another run folder")


def open_run(run: Path, name: str, recipe: Recipe, made_of: Mapping[str, str]) -> None:
    """Writes what `run` is, for `recipe`, named `name`, or checks that it is made of the same data.

    Args:
        run: an existing folder, for which `check_run` found no fault.
        name: of the recipe.
        recipe: with all options resolved.
        made_of: digests by the keys of `PARTS`; empty ones are unknown.

    Raises:
        InputError: the run was made of other images, annotations, proposals or initial weights.
    """
    if _is_under_way(run):
        before = _read(run)
        _check_same(run, before, recipe, made_of)
        made_of = {part: made_of.get(part) or before.made_of.get(part, "") for part in PARTS}
    content = {"recipe": name, "made_of": {k: v for k, v in made_of.items() if v}, **_plain(recipe)}
    with replacing(run / NAME) as temporary:
        temporary.write_text(yaml.safe_dump({**content, "checksum": _checksum(content)}, sort_keys=False))


def read_run(run: Path) -> Recipe:
    """The resolved recipe of the folder `run`.

    Raises:
        InputError: the folder is not a run, or its recipe.yaml does not fit this version.
    """
    return _read(run).recipe


@dataclass(frozen=True)
class _Opened:
    """The content of recipe.yaml."""

    name: str
    recipe: Recipe
    made_of: Mapping[str, str]


def _is_under_way(run: Path) -> bool:
    """Whether a step was trained."""
    return (run / NAME).exists() and (checkpoint.exists(run) or has_rows(run))


def _is_empty(run: Path) -> bool:
    """Whether it holds nothing, or only what a process that was killed in its first moments left."""
    return all(path.name == LOCK or is_leftover(path) for path in run.iterdir())


def _check_same(run: Path, before: _Opened, recipe: Recipe, made_of: Mapping[str, str]) -> None:
    if not before.made_of:
        warnings.warn(
            f"{run} was made by a version that kept no digests of the data: that they are the same is not checked",
            stacklevel=3,
        )
    for part, title in PARTS.items():
        old, new = before.made_of.get(part), made_of.get(part)
        if part == "weights" and before.recipe.model.weights == recipe.model.weights:
            continue  # a run that goes on does not read them
        if (part == "weights" and old != new) or (old and new and old != new):
            where = recipe.model.weights if part == "weights" else ", ".join(recipe.data.train)
            raise InputError(
                f"the {title} of {where} are not those that {run} was made of: restore them, or name another run folder"
            )


def _read(run: Path) -> _Opened:
    path = run / NAME
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum", None)
        if checksum is not None and checksum != _checksum(content):
            warnings.warn(
                f"{path} was changed after it was written: its present values are taken; options can be given on the "
                "line instead",
                stacklevel=4,
            )
        name, made_of = content.pop("recipe"), content.pop("made_of", {})
        if not isinstance(name, str) or not all(isinstance(text, str) for pair in made_of.items() for text in pair):
            raise TypeError("recipe and made_of hold no text")
        recipe = cast(Recipe, _build(Recipe, content))
        check_ranges(recipe)
        return _Opened(name, recipe, made_of)
    except FileNotFoundError as error:
        raise InputError(f"{run} is not a run (it has no {NAME}): train one with `ohem train {run} ...`") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it, or name another run folder") from error


def _checksum(content: Mapping[str, Any]) -> str:
    """8 hexadecimal digits of what a file says, however it is laid out."""
    return f"{crc32(json.dumps(content, sort_keys=True, default=str).encode()):08x}"


def _build(kind: type, content: Mapping[str, Any]) -> Any:
    """A dataclass from the plain values of YAML: mappings to nested dataclasses, lists to tuples."""
    hints = get_type_hints(kind)
    values = {
        key: _build(hints[key], value)
        if is_dataclass(hints[key])
        else tuple(value)
        if isinstance(value, list)
        else value
        for key, value in content.items()
    }
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise TypeError(f"{key} is {value!r}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the plain type, the words, the tuple or the dataclass that `hint` asks for."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(hint, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
