"""Recipes as commands of `ohem`, to print them or to run them in another process."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ohem.config.recipes import RECIPES
from ohem.config.schema import ProposalConfig, Recipe
from ohem.config.validation import flatten_options
from ohem.errors import InputError


def train_command(run: Path, name: str, recipe: Recipe) -> list[str]:
    """Returns the arguments that train `recipe`, a change of the recipe `name`, into the folder `run`."""
    base = RECIPES[name].recipe
    seed = recipe.solver.seed
    unseeded = with_seed(recipe, base.solver.seed)
    return ["train", str(run), "--recipe", name, *format_options(unseeded, base), "--solver.seed", str(seed)]


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Returns `recipe` with another seed."""
    return replace(recipe, solver=replace(recipe.solver, seed=seed))


def seeds_from(first: int, count: int) -> list[int]:
    """Returns the seeds of `count` runs, from `first` on; raises `InputError` if `count` is below 1."""
    if count < 1:
        raise InputError(f"--seeds {count} trains nothing: give 1 or more")
    return list(range(first, first + count))


def format_options(options: Any, base: Any, group: str = "") -> list[str]:
    """Returns the options by which a dataclass differs from `base`, as arguments of a command.

    A list that is empty only in `options` is left out, since a command line cannot empty a list. So is a flag that is
    None.

    Args:
        options: a `Recipe`, or one of its groups.
        base: another of the same type.
        group: prefix of the names of the options, such as "test.".
    """
    pairs = zip(flatten_options(options, group), flatten_options(base, group), strict=True)
    arguments = []
    for (name, value), (_, before) in pairs:
        values = value if isinstance(value, tuple) else (value,)
        if value != before and values and not (value is None and name in FLAGS):
            arguments += option_arguments(name, ["none" if item is None else str(item) for item in values])
    return arguments


def option_arguments(name: str, values: list[str]) -> list[str]:
    """Returns one option as arguments of a command: "solver.lr", ["0.1"] -> ["--solver.lr", "0.1"].

    A flag becomes `--data.flip` or `--data.no-flip`.
    """
    option = name.replace("_", "-")
    if name in FLAGS and values == ["False"]:
        group, _, last = option.rpartition(".")
        return [f"--{group}.no-{last}"]
    if name in FLAGS and values == ["True"]:
        return [f"--{option}"]
    if any(value.startswith("-") for value in values):  # a separate argument would be read as an option
        return [f"--{option}={value}" for value in values]
    return [f"--{option}", *values]


def propose_command(sources: Iterable[str], negatives: Sequence[str], proposals: ProposalConfig) -> list[str]:
    """Returns the arguments of the command that makes the proposals of `sources` and of the folders `negatives`.

    There is none, an empty list, where the detector makes its own, or for sliding windows.
    """
    if {"none", "sliding"} & set(proposals.mode):
        return []
    options = option_arguments("negatives", list(negatives)) if negatives else []
    return ["propose", *sources, *options, *format_options(proposals, ProposalConfig())]


def format_command(arguments: Iterable[str]) -> str:
    """Returns a command as a user would type it."""
    return f"ohem {shlex.join(arguments)}"


def _flags(kind: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _flags(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        elif bool in (hint, *get_args(hint)):
            yield f"{prefix}{field.name}"


FLAGS = frozenset(_flags(Recipe))
"""Names of the options that are flags. `False` as a value of another option is text, such as the name of a class."""
