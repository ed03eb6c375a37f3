"""The methods that a comparison trains, as a user names them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ohem.config.methods import METHODS
from ohem.config.renamed import VALUES
from ohem.config.resolve import parse_options
from ohem.config.schema import Recipe
from ohem.errors import InputError, suggest
from ohem.experiments.commands import option_arguments


@dataclass(frozen=True)
class ComparedMethod:
    """A method with its recipe.

    Args:
        name: name in tables; the run folders are called NAME-SEED.
        about: one line that describes it.
        recipe: all options of its trainings.
    """

    name: str
    about: str
    recipe: Recipe


def parse_method(text: str, recipe: Recipe) -> ComparedMethod:
    """Parses one value of --methods: a name, then options of this method after commas: "ohem,sampler.nms-iou=0.5".

    Args:
        text: the value.
        recipe: the schedule, the data and all other options that the methods share.

    Raises:
        InputError: the method is unknown, or a part is not OPTION=VALUE.
        cyclopts.CycloptsError: an option is unknown, or its value does not fit.
    """
    name, *options = text.split(",")
    if name not in METHODS:
        renamed = VALUES["sampler.name"].get(name)
        raise InputError(
            f"--methods {name} is unknown: " + (f"did you mean {renamed}?" if renamed else suggest(name, METHODS))
        )
    arguments = []
    for item in options:
        option, given, value = item.partition("=")
        if not given or not option:
            raise InputError(f'--methods {text}: "{item}" is not OPTION=VALUE, as in ohem,sampler.nms-iou=0.5')
        arguments += option_arguments(option.strip().lstrip("-").replace("-", "_"), value.split())
    changed = parse_options(arguments, METHODS[name].change(recipe)) if arguments else METHODS[name].change(recipe)
    about = ", ".join([METHODS[name].about, *options])
    return ComparedMethod(re.sub(r"[^\w.=+-]+", "-", text).strip("-"), about, changed)


def parse_methods(texts: Sequence[str], recipe: Recipe) -> list[ComparedMethod]:
    """Parses all values of --methods; raises `InputError` if a method is there twice, or there are fewer than two."""
    methods = [parse_method(text, recipe) for text in texts]
    names = [method.name for method in methods]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"--methods has {twice[0]} twice: leave one out")
    if len(methods) < 2:
        raise InputError("--methods needs two or more: the others are compared with the first")
    return methods
