"""Ranges of numeric options: a value outside gets a sentence that names the option."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from ohem.config.recipes import RECIPES
from ohem.config.schema import ProposalConfig, Recipe
from ohem.config.validation import RANGES, check_ranges, flatten_options
from ohem.errors import InputError
from tests.helpers.command_line import ohem, sentence

NUMBERS = sorted(
    f"{group.name}.{option.name}"
    for group in fields(Recipe)
    for option in fields(getattr(Recipe(), group.name))
    if any(kind in str(option.type) for kind in ("int", "float")) and "Literal" not in str(option.type)
)


def with_value(name: str, value: Any) -> Recipe:
    group, option = name.split(".")
    recipe = Recipe()
    whole = isinstance(getattr(getattr(recipe, group), option), tuple)
    changed = replace(getattr(recipe, group), **{option: (value,) if whole else value})
    return replace(recipe, **{group: changed})


def test_numbers_and_ranges_are_the_same_options() -> None:
    assert sorted(RANGES) == NUMBERS
    assert set(NUMBERS) <= {name for name, _ in flatten_options(Recipe())}


@pytest.mark.parametrize("name", NUMBERS)
def test_out_of_range(name: str) -> None:
    low, high = RANGES[name]
    outside = [math.nan, math.inf, -math.inf]
    outside += [low - 1] if low > -1e9 else []
    outside += [high + 1] if high < 1e9 else []
    for value in outside:
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value} is out of range: give "):
            check_ranges(with_value(name, value))
    check_ranges(with_value(name, max(low, -1e9)))
    check_ranges(with_value(name, min(high, 1e9)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_in_range(recipe: str) -> None:
    check_ranges(RECIPES[recipe].recipe)


def test_options_of_propose_are_named_as_it_takes_them() -> None:
    with pytest.raises(InputError, match=r"^--seed -3 is out of range: give 0 to "):
        check_ranges(ProposalConfig(seed=-3), "proposals.")
    assert "--jobs -7 is out of range" in sentence(ohem("propose", "x:train", "--jobs=-7"))
