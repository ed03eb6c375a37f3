"""RUN/recipe.yaml: name and options of the recipe of a run, and digests of its data and initial weights."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints
from zlib import crc32

import yaml

from ohem.config.renamed import rename, today_s_proposals, today_s_sampler
from ohem.config.schema import Recipe
from ohem.config.validation import check_ranges
from ohem.errors import InputError
from ohem.io.files import atomic_write
from ohem.io.yaml_texts import format_yaml, parse_yaml

NAME = "recipe.yaml"


@dataclass(frozen=True)
class RecipeFile:
    """Content of recipe.yaml."""

    name: str
    recipe: Recipe
    made_of: Mapping[str, str]


def read_run(run: Path) -> Recipe:
    """Reads the recipe of the run folder `run`, with all options.

    Raises:
        InputError: the folder is not a run, or its recipe.yaml does not fit this version.
    """
    return read_recipe_file(run).recipe


def read_recipe_file(run: Path) -> RecipeFile:
    """Reads RUN/recipe.yaml, also of ohem 0.1; raises `InputError` as `read_run` does."""
    path = run / NAME
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum", None)
        if checksum is not None and checksum != _checksum(content):
            _warn(
                f"{path} was changed after it was written: its present values are used; give options on the command "
                "line instead"
            )
        name, made_of = content.pop("recipe"), content.pop("made_of", {})
        content, changes = rename(content)
        if changes:
            content["sampler"] = today_s_sampler(content["sampler"])
            _warn(f"{path} was written by ohem 0.1, and is read with the names of today: {', '.join(changes)}")
        if not isinstance(name, str) or not all(isinstance(text, str) for pair in made_of.items() for text in pair):
            raise TypeError("recipe and made_of must be text")
        if "proposals" in content:
            content["proposals"] = today_s_proposals(content["proposals"])
        recipe = cast(Recipe, _build(Recipe, content))
        check_ranges(recipe)
        return RecipeFile(name, recipe, made_of)
    except FileNotFoundError as error:
        if (run / "JPEGImages").is_dir() or (run / "Annotations").is_dir():
            remedy = f"it is a data set: name a run folder, which `ohem train RUN --data.train {run}:SPLIT` makes"
        else:
            remedy = f"train one with `ohem train {run} ...`"
        raise InputError(f"{run} is not a run (it has no {NAME}): {remedy}") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it, or name another run folder") from error


def write_recipe_file(run: Path, file: RecipeFile) -> None:
    """Writes `file` as RUN/recipe.yaml; raises `OSError` if it cannot be written."""
    content = {"recipe": file.name, "made_of": dict(file.made_of), **_plain(file.recipe)}
    with atomic_write(run / NAME) as temporary:
        temporary.write_text(format_yaml({**content, "checksum": _checksum(content)}), encoding="utf-8")


def _warn(message: str) -> None:
    """Warns at one place, so that Python prints a message once, even though a command reads the file several times."""
    warnings.warn(message, stacklevel=1)


def _checksum(content: Mapping[str, Any]) -> str:
    """Returns 8 hexadecimal digits of the content of a file, which do not depend on its layout."""
    return f"{crc32(json.dumps(content, sort_keys=True, default=str).encode()):08x}"


def _build(kind: type, content: Mapping[str, Any]) -> Any:
    """Makes a dataclass from the values of YAML: mappings become nested dataclasses, lists become tuples."""
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
    """Returns whether `value` is of the type, the literal, the tuple or the dataclass that `hint` names."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return list(value) if isinstance(value, tuple) else value
