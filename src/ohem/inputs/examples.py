"""Images with their proposals and targets, in the sizes of a recipe."""

from collections.abc import Sequence

from ohem.config.schema import Recipe
from ohem.data.dataset import DetectionSet
from ohem.data.loader import Examples, ImagePyramids
from ohem.inputs.datasets import open_data, without_left_out
from ohem.inputs.negatives import add_negatives
from ohem.inputs.proposals import build_proposals, most_proposals


def open_training_examples(recipe: Recipe) -> Examples:
    """Opens all images that `recipe` trains on, also those of `data.negatives`.

    Args:
        recipe: with `data.classes` filled in.

    Raises:
        InputError: the data or the proposals are missing or damaged.
    """
    return build_examples(open_training_data(recipe), recipe)


def open_training_data(recipe: Recipe) -> DetectionSet:
    """Opens the images of `open_training_examples` without their proposals."""
    data = without_left_out(open_recipe_data(recipe, recipe.data.train, "--data.train"), recipe.data.leave_out)
    add_negatives(data, recipe.data.negatives)
    return data


def open_recipe_data(recipe: Recipe, sources: Sequence[str], option: str, *, annotated: bool = True) -> DetectionSet:
    """Opens `sources` with the classes of `recipe`; the other arguments are those of `open_data`."""
    config = recipe.data
    return open_data(sources, config.classes, option, annotated=annotated, skip_others=config.skip_others)


def build_examples(data: DetectionSet, recipe: Recipe) -> Examples:
    """Returns the images of `data` with proposals, at the scale that `recipe` trains at."""
    config, proposals = recipe.data, build_proposals(data, recipe.proposals)
    return Examples(data, proposals, short=config.short, long=config.long, top=most_proposals(recipe.proposals))


def build_pyramids(examples: Examples, recipe: Recipe) -> ImagePyramids:
    """Returns the images of `examples` with their proposals, in the sizes that `recipe` tests at."""
    shorts, long = sizes_to_test(recipe)
    return ImagePyramids(examples, shorts=shorts, long=long)


def sizes_to_test(recipe: Recipe) -> tuple[tuple[int, ...], int]:
    """Returns the short sides that `recipe` tests at, in pixels, and the highest long side."""
    return recipe.test.scales or (recipe.data.short,), recipe.test.long or recipe.data.long
