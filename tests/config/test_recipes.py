"""The named recipes have the settings of the paper, and can be trained."""

import pytest

from ohem.config.recipes import RECIPES
from ohem.config.validation import check_recipe

FAST_RCNN = [name for name, entry in RECIPES.items() if entry.recipe.model.detector == "fast_rcnn"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_be_trained(name: str) -> None:
    check_recipe(RECIPES[name].recipe)


@pytest.mark.parametrize("name", FAST_RCNN)
def test_recipe_of_fast_rcnn_has_the_settings_of_the_paper(name: str) -> None:
    recipe = RECIPES[name].recipe
    assert recipe.sampler.batch_size is not None
    assert recipe.solver.images * recipe.sampler.batch_size == (2048 if "-all" in name else 128)
    assert recipe.solver.images == (1 if "-n1" in name else 2)
    assert (recipe.solver.momentum, recipe.solver.weight_decay, recipe.solver.gamma) == (0.9, 0.0005, 0.1)
    if name.startswith("voc"):
        assert (recipe.data.short, recipe.data.long) == (600, 1000)
        assert (recipe.solver.steps, recipe.solver.decay_every) in {(80_000, 30_000), (200_000, 40_000)}
