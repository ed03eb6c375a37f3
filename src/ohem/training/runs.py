"""A run folder: the recipe it was made with, resolved, and what must agree for it to be resumed or evaluated."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import yaml

from ohem.errors import InputError
from ohem.files import replacing
from ohem.training import checkpoint
from ohem.training.config import Recipe
from ohem.training.metrics import has_rows

NAME = "recipe.yaml"
# What may differ when a run goes on: the machine, how much is logged, how far it is to go, and how it is tested.
FREE = ("run.", "test.", "solver.steps", "data.test", "data.workers", "proposals.jobs", "proposals.folder")


def open_run(run: Path, name: str, recipe: Recipe) -> None:
    """Makes the folder `run` for `recipe`, named `name`, or checks that it was made for it.

    A folder in which no step was trained yet, its first try having ended in bad input, is made anew.

    Raises:
        InputError: the folder holds a run of another recipe, or something that is not a run.
    """
    if (run / NAME).exists() and (checkpoint.exists(run) or has_rows(run)):
        before_name, before = _read(run)
        changed = [
            (key, old, new)
            for (key, old), (_, new) in zip(flat(asdict(before)), flat(asdict(recipe)), strict=True)
            if old != new and not key.startswith(FREE)
        ]
        if changed:
            key, old, new = changed[0]
            raise InputError(
                f"{run} holds a run of recipe {before_name} with {key} {_show(old)}, not {_show(new)} as for {name}: "
                "name another run folder, or repeat the line that made it"
            )
    elif run.exists() and not (run / NAME).exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run} exists and is not a run (it has no {NAME}): name another run folder")
    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / NAME) as beside:
        beside.write_text(yaml.safe_dump({"recipe": name, **_plain(recipe)}, sort_keys=False))


def read_run(run: Path) -> Recipe:
    """The resolved recipe of the folder `run`.

    Raises:
        InputError: the folder is not a run, or its recipe.yaml does not fit this version.
    """
    return _read(run)[1]


def _read(run: Path) -> tuple[str, Recipe]:
    path = run / NAME
    try:
        content = yaml.safe_load(path.read_text())
        name = content.pop("recipe")
        return name, cast(Recipe, _build(Recipe, content))
    except FileNotFoundError as error:
        raise InputError(f"{run} is not a run (it has no {NAME}): train one with `ohem train {run} ...`") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it, or name another run folder") from error


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


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of nested settings by their dotted names: `solver.lr`, 0.001."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
