"""The sizes of the images that the detector gets."""

from dataclasses import replace

from ohem.config import schema
from ohem.config.recipes import RECIPES
from ohem.inputs.examples import sizes_to_test


def test_sizes_to_test_are_those_of_the_recipe() -> None:
    recipe = RECIPES["small-ohem"].recipe
    assert sizes_to_test(recipe) == ((400,), 667)
    assert sizes_to_test(replace(recipe, data=replace(recipe.data, scales=(320, 480)))) == ((400,), 667)
    test = schema.TestConfig(scales=(480, 320), long=1000)
    assert sizes_to_test(replace(recipe, test=test)) == ((480, 320), 1000)
