"""Options of a command: those of the command line override those of --config, which override those of the recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from ohem.config.methods import replace_options
from ohem.config.recipes import RECIPES
from ohem.config.resolve import format_default, format_recipe, parse_options
from ohem.config.schema import Recipe
from ohem.errors import InputError
from tests.helpers.command_line import ohem, sentence

BASE = RECIPES["demo-ohem"].recipe


def test_options_replace_those_of_the_base() -> None:
    arguments = ["--solver.lr", "0.5", "--data.classes", "cat", "dog", "--data.flip", "--sampler.nms-iou=0.6"]
    changes = {"solver": {"lr": 0.5}, "data": {"classes": ("cat", "dog"), "flip": True}, "sampler": {"nms_iou": 0.6}}
    assert parse_options(arguments, BASE) == replace_options(BASE, **changes)
    assert parse_options([], BASE) == BASE


def test_devices_is_short_for_the_option_of_the_run() -> None:
    assert parse_options(["--devices", "auto"], BASE) == replace(BASE, run=replace(BASE.run, devices="auto"))


def test_config_file_is_between_the_command_line_and_the_base(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("solver: {lr: 0.5, warmup: 7}\n")
    recipe = parse_options(["--config", str(config), "--solver.lr", "0.25"], BASE)
    assert recipe == replace_options(BASE, solver={"lr": 0.25, "warmup": 7})


@pytest.mark.parametrize("arguments", [["--solver.lrr", "1"], ["--solver.lr", "fast"], ["cat"], ["--help"]])
def test_arguments_that_are_no_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(CycloptsError):
        parse_options(arguments, BASE)


def test_missing_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: correct --config"):
        parse_options(["--config", str(tmp_path / "none.yaml")], BASE)


@pytest.mark.parametrize("name", RECIPES)
def test_printed_recipe_as_config_of_another_recipe_gives_the_same_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr("ohem.training.run.run_training", lambda run, name, recipe, devices: recipes.append(recipe))
    config = tmp_path / "recipe.yaml"
    config.write_text(ohem("recipes", name).out)
    recipe = RECIPES[name].recipe
    other = Recipe()  # it leaves all options open that `recipe` leaves open
    assert parse_options(["--config", str(config)], other) == recipe
    assert ohem("train", tmp_path / "run", "--recipe", "small-frcn", "--config", config).code == 0
    assert recipes == [recipe]
    assert config.read_text() == format_recipe(recipe)


def test_unknown_recipe_to_print_names_the_nearest() -> None:
    assert "did you mean demo-ohem?" in sentence(ohem("recipes", "demo-ohme"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("frcn", "ohem"), "frcn ohem"),
        ((), None),
        (None, None),
        (True, None),
        (False, None),
        (0, "0"),
        ("none", "none"),
    ],
)
def test_defaults_are_formatted_as_a_user_would_type_them(value: object, text: str | None) -> None:
    assert format_default(value) == text
