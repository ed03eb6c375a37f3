"""Commands made from recipes, and the options of methods."""

from pathlib import Path

import pytest

from ohem.config.methods import METHODS, multi_scale, replace_options, voting
from ohem.config.recipes import RECIPES
from ohem.config.schema import Recipe
from ohem.errors import InputError
from ohem.experiments.commands import format_command, format_options, option_arguments, seeds_from, train_command
from ohem.experiments.methods import parse_method, parse_methods
from tests.helpers.command_line import ohem

BASE = RECIPES["small-frcn"].recipe


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Returns the recipes of all trainings that commands would start; nothing is trained."""
    recipes: list[Recipe] = []
    monkeypatch.setattr("ohem.training.run.run_training", lambda run, name, recipe, devices: recipes.append(recipe))
    return recipes


def _with_data(recipe: Recipe) -> Recipe:
    return replace_options(recipe, data={"train": ("a b:trainval", "c:trainval"), "test": ("a b:test",)})


@pytest.mark.parametrize("name", METHODS)
def test_command_of_a_method_is_parsed_to_its_recipe(name: str, parsed: list[Recipe]) -> None:
    settings = replace_options(
        _with_data(BASE), solver={"steps": 7, "lr": 0.25, "seed": 3}, data={"flip": False}, proposals={"folder": "x"}
    )
    method = parse_method(name, settings)
    assert ohem(*train_command(Path("run"), "small-frcn", method.recipe)).code == 0
    assert parsed == [METHODS[name].change(settings)]


def test_options_of_every_kind_are_parsed_to_the_same_recipe(parsed: list[Recipe]) -> None:
    settings = voting(multi_scale(_with_data(BASE), (320, 400), (400,)))
    settings = replace_options(settings, test={"long": 500}, sampler={"per_image": False}, solver={"accumulate": True})
    ohem(*train_command(Path("run"), "small-frcn", settings))
    assert parsed == [settings]


def test_options_of_the_named_recipe_are_not_repeated() -> None:
    assert format_options(METHODS["frcn"].change(BASE), BASE) == []
    assert format_options(METHODS["ohem"].change(BASE), BASE) == ["--sampler.name", "ohem"]


def test_method_can_have_its_own_options() -> None:
    method = parse_method("ohem,sampler.nms-iou=0.5,data.scales=320 400,--solver.bias_lr=1,data.flip=False", BASE)
    changes = {"solver": {"bias_lr": 1.0}, "data": {"scales": (320, 400), "flip": False}}
    assert method.recipe == replace_options(BASE, sampler={"name": "ohem", "nms_iou": 0.5}, **changes)
    assert "/" not in method.name
    assert " " not in method.name


def test_methods_with_one_image_have_as_many_rois() -> None:
    recipe = METHODS["all-n1"].change(BASE)
    assert (recipe.solver.images, recipe.sampler.batch_size) == (1, 2048)
    recipe = METHODS["all"].change(BASE)
    assert (recipe.solver.images, recipe.sampler.batch_size) == (2, 1024)
    assert recipe.solver.lr == pytest.approx(3 * BASE.solver.lr)
    assert METHODS["ohem-n1"].change(BASE).sampler.batch_size == 128


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["frcn", "ohme"], "did you mean ohem"),
        (["frcn", "own"], "did you mean builtin"),
        (["frcn", "xyz"], "choose from frcn"),
        (["frcn", "ohem,sampler.nms-iou"], "is not OPTION=VALUE"),
        (["ohem", "ohem"], "ohem twice"),
        (["ohem"], "two or more"),
    ],
)
def test_methods_that_cannot_be_compared(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_methods(texts, BASE)


def test_seeds_are_consecutive() -> None:
    assert seeds_from(5, 3) == [5, 6, 7]
    with pytest.raises(InputError, match="--seeds 0"):
        seeds_from(0, 0)


def test_commands_are_formatted_as_a_user_types_them() -> None:
    assert format_command(["train", "a b", "--x", "1"]) == "ohem train 'a b' --x 1"
    assert option_arguments("data.classes", ["-1", "king"]) == ["--data.classes=-1", "--data.classes=king"]
