"""Arms: the command line of an arm, parsed as a person's would be, is the arm."""

from dataclasses import replace
from pathlib import Path

import pytest

from ohem.errors import InputError
from ohem.experiments.arms import Arm, changed, make_arm, make_arms, seeded, shown, words
from ohem.training import start
from ohem.training.config import Recipe
from ohem.training.recipes import RECIPES
from ohem.training.variants import VARIANTS, multi_scale, vary, voting
from tests.command_line import ohem

BASE = RECIPES["small-frcn"].recipe


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The settings of every training that the command line was asked for; none is done."""
    asked: list[Recipe] = []
    monkeypatch.setattr(start, "start", lambda run, name, recipe, devices: asked.append(recipe))
    return asked


def _placed(recipe: Recipe) -> Recipe:
    return vary(recipe, data={"train": ("a b:trainval", "c:trainval"), "test": ("a b:test",)})


@pytest.mark.parametrize("name", VARIANTS)
def test_the_line_of_an_arm_is_its_settings(name: str, parsed: list[Recipe]) -> None:
    settings = vary(_placed(BASE), solver={"steps": 7, "lr": 0.25}, data={"flip": False}, proposals={"folder": "x"})
    arm = make_arm(name, "small-frcn", settings)
    assert ohem(*arm.line(Path("run"), 3)).code == 0
    assert parsed == [vary(VARIANTS[name][1](settings), solver={"seed": 3})]


def test_every_kind_of_option_can_be_told(parsed: list[Recipe]) -> None:
    settings = voting(multi_scale(_placed(BASE), (320, 400), (400,)))
    settings = vary(settings, test={"long": 500}, sampler={"per_image": False}, solver={"accumulate": True})
    arm = Arm("x", "small-frcn", changed(settings, BASE))
    ohem(*arm.line(Path("run"), 0))
    assert parsed == [settings]


def test_nothing_is_told_twice() -> None:
    """What the recipe has already is not repeated."""
    assert make_arm("frcn", "small-frcn", BASE).options == {}
    assert words(make_arm("ohem", "small-frcn", BASE).options) == ["--sampler.name", "ohem"]


def test_options_after_the_name(parsed: list[Recipe]) -> None:
    arm = make_arm("ohem,sampler.nms-iou=0.5,data.scales=320 400,--solver.bias_lr=1", "small-frcn", BASE)
    ohem(*arm.line(Path("run"), 0))
    assert parsed[0].sampler == replace(BASE.sampler, name="ohem", nms_iou=0.5)
    assert parsed[0].data.scales == (320, 400)
    assert parsed[0].solver.bias_lr == 1
    assert "/" not in arm.name
    assert " " not in arm.name


def test_one_image_has_the_rois_of_two() -> None:
    recipe = VARIANTS["all-n1"][1](BASE)
    assert (recipe.solver.images, recipe.sampler.batch_size) == (1, 2048)
    recipe = VARIANTS["all"][1](BASE)
    assert recipe.solver.images * recipe.sampler.batch_size == 2048
    assert recipe.solver.lr == pytest.approx(3 * BASE.solver.lr)
    assert VARIANTS["ohem-n1"][1](BASE).sampler.batch_size == 128


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["frcn", "ohme"], "did you mean ohem"),
        (["frcn", "xyz"], "choose of frcn"),
        (["frcn", "ohem,sampler.nms-iou"], "is not OPTION=VALUE"),
        (["ohem", "ohem"], "ohem twice"),
    ],
)
def test_arms_that_make_no_sense(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_arms(texts, "small-frcn", BASE)


def test_seeds_follow_that_of_the_settings() -> None:
    assert seeded(vary(BASE, solver={"seed": 5}), 3) == [5, 6, 7]
    with pytest.raises(InputError, match="--seeds 0"):
        seeded(BASE, 0)


def test_lines_are_shown_as_typed() -> None:
    assert shown(["train", "a b", "--x", "1"]) == "ohem train 'a b' --x 1"
