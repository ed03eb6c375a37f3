"""The data sets that a recipe names."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ohem.config.schema import DataConfig, Recipe
from ohem.config.validation import check_recipe
from ohem.data.annotations.annotation import class_name
from ohem.data.annotations.findings import first_of
from ohem.data.dataset import DetectionSet
from ohem.data.sources import FORMS, open_dataset
from ohem.errors import InputError
from ohem.inputs.negatives import add_negatives


def training_data(recipe: Recipe) -> tuple[DetectionSet, Recipe]:
    """Opens the training data of `recipe` with its negatives; returns them and the recipe with their classes.

    Raises:
        InputError: options or data do not fit, or there is no object.
    """
    check_recipe(recipe)
    skip = recipe.data.skip_others or bool(recipe.data.classes)
    data = open_data(recipe.data.train, recipe.data.classes, "--data.train", skip_others=skip)
    data = without_left_out(data, recipe.data.leave_out)
    check_objects(data, recipe.data.train, "annotate some, or name another split")
    add_negatives(data, recipe.data.negatives)
    absent = [name for name in recipe.data.classes if not data.objects()[class_name(name)]]
    if absent:
        names = ", ".join(recipe.data.train)
        warnings.warn(f"{names} has no object of {len(absent)} of the classes: {first_of(absent)}", stacklevel=2)
    return data, with_classes(recipe, data.classes)


def without_left_out(data: DetectionSet, file: str | None) -> DetectionSet:
    """Returns `data` without the images whose names are in `file`; all of it where there is no file.

    Raises:
        InputError: the file cannot be read, names an image that is not in the data, or all of them.
    """
    if file is None:
        return data
    try:
        names = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data.leave-out {file} cannot be read ({error}): name a file of image names") from error
    unknown = sorted(set(names) - set(data.ids))
    if unknown:
        raise InputError(f"{file} of --data.leave-out has {unknown[0]!r}, which is no image of the data: remove it")
    left_out = set(names)
    kept = [index for index, name in enumerate(data.ids) if name not in left_out]
    if not kept:
        raise InputError(f"{file} of --data.leave-out has all images of the data: leave some to train on")
    return data.part(kept)


def open_data(
    sources: Sequence[str],
    classes: Sequence[str],
    option: str,
    *,
    annotated: bool = True,
    skip_others: bool = False,
) -> DetectionSet:
    """Opens the data set of `sources`.

    Args:
        sources: data sets of one format.
        classes: names of the classes; those of the annotations if empty.
        option: option that a message names where there is no source.
        annotated: False allows images in VOC layout without an annotation file.
        skip_others: as for `DetectionSet`.

    Raises:
        InputError: there is no source, or as `DetectionSet` does.
    """
    if not sources:
        raise InputError(f"no data set is given: name one with {option} {FORMS}")
    return open_dataset(sources, classes or None, annotated=annotated, skip_others=skip_others)


def check_objects(data: DetectionSet, sources: Sequence[str], remedy: str) -> None:
    """Raises `InputError` where `data`, opened from `sources`, has no object except ignored ones."""
    names, objects = ", ".join(sources), data.objects()
    if not objects:
        if data.other_classes:
            wanted, there = (", ".join(map(repr, names)) for names in (data.classes, data.other_classes))
            raise InputError(f"{names} has no object of the classes {wanted}: give some of {there} with --data.classes")
        kinds = "no object" + (" except difficult ones and crowds, which are ignored" if _any(data) else "")
        raise InputError(f"{names} has {kinds}: {remedy}")


def _any(data: DetectionSet) -> bool:
    return any(len(data.target(i)["labels"]) for i in range(len(data)))


def with_classes(recipe: Recipe, classes: Sequence[str]) -> Recipe:
    """Returns the recipe with the class names of the training data; with given classes, others are always skipped."""
    skip = recipe.data.skip_others or bool(recipe.data.classes)
    data: DataConfig = replace(recipe.data, classes=tuple(classes), skip_others=skip)
    return replace(recipe, data=data)
