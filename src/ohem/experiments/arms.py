"""Arms: ways of training that are compared on the same data, schedule and seeds."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ohem.errors import InputError
from ohem.training.config import Recipe
from ohem.training.ranges import flat
from ohem.training.recipes import RECIPES
from ohem.training.variants import VARIANTS

Options = Mapping[str, tuple[str, ...]]
FLAGS = frozenset(name for name, value in flat(asdict(Recipe())) if isinstance(value, bool))
"""Options that are yes or no; `False` as the value of another option is a text, such as the name of a class."""

Parse = Callable[[Sequence[str]], Recipe]
"""Gives the settings that the words of an `ohem train` line stand for."""


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        name: of the run folders, and in tables.
        recipe: the named recipe that its command line starts from.
        options: what the line sets besides, dotted option name -> words; the seed comes last, from `line`.
        about: a description.
    """

    name: str
    recipe: str
    options: Options = field(default_factory=dict)
    about: str = ""

    def line(self, run: Path, seed: int) -> list[str]:
        """Words of the command that trains it into `run`."""
        return ["train", str(run), "--recipe", self.recipe, *words(self.options), "--solver.seed", str(seed)]


def make_arm(text: str, recipe: str, settings: Recipe) -> Arm:
    """The arm that `text` names: a variant, with options of its own after commas, `ohem,sampler.nms-iou=0.5`.

    Args:
        text: as given to `--arms`.
        recipe: name of the recipe that the line starts from.
        settings: the schedule, data and all else that the arms share.

    Raises:
        InputError: no such variant, or something that is not an option and its value.
    """
    name, *extra = text.split(",")
    if name not in VARIANTS:
        near = get_close_matches(name, VARIANTS, n=1)
        raise InputError(
            f"--arms {name} is unknown: " + (f"did you mean {near[0]}?" if near else f"choose of {', '.join(VARIANTS)}")
        )
    options = dict(changed(VARIANTS[name][1](settings), RECIPES[recipe].recipe))
    for item in extra:
        option, given, value = item.partition("=")
        if not given or not option:
            raise InputError(f'--arms {text}: "{item}" is not OPTION=VALUE, as in ohem,sampler.nms-iou=0.5')
        options[option.strip().lstrip("-").replace("_", "-")] = tuple(value.split())
    about = ", ".join([VARIANTS[name][0], *extra])
    return Arm(re.sub(r"[^\w.=+-]+", "-", text).strip("-"), recipe, options, about)


def make_arms(texts: Sequence[str], recipe: str, settings: Recipe) -> list[Arm]:
    """An arm of each text, by `make_arm`; InputError if one is there twice."""
    arms = [make_arm(text, recipe, settings) for text in texts]
    twice = [arm.name for i, arm in enumerate(arms) if arm.name in [other.name for other in arms[:i]]]
    if twice:
        raise InputError(f"--arms has {twice[0]} twice: leave one out")
    return arms


def changed(settings: Any, base: Any, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Options by which the dataclass `settings` differs from `base`, as the command line takes them.

    The seed is left out. A list that is empty in `settings` alone cannot be told on a line and is left out, too.
    """
    pairs = zip(flat(asdict(settings), prefix), flat(asdict(base), prefix), strict=True)
    return {
        name.replace("_", "-"): _as_words(value)
        for (name, value), (_, before) in pairs
        if value != before and value not in (None, ()) and name != "solver.seed"
    }


def words(options: Options) -> list[str]:
    """`{"solver.lr": ("0.1",)}` -> `["--solver.lr", "0.1"]`; yes and no become `--data.flip` and `--data.no-flip`."""
    line: list[str] = []
    for name, values in options.items():
        flag = name.replace("-", "_") in FLAGS
        if flag and values == ("False",):
            group, _, last = name.rpartition(".")
            line.append(f"--{group}.no-{last}")
        elif flag and values == ("True",):
            line.append(f"--{name}")
        elif any(value.startswith("-") for value in values):  # which would be read as an option
            line += [f"--{name}={value}" for value in values]
        else:
            line += [f"--{name}", *values]
    return line


def shown(line: Iterable[str]) -> str:
    """A line as a person would type it."""
    return f"ohem {shlex.join(line)}"


def seeded(settings: Recipe, seeds: int) -> list[int]:
    """The seeds of `seeds` runs, from that of `settings` on; InputError if there are none."""
    if seeds < 1:
        raise InputError(f"--seeds {seeds} trains nothing: give 1 or more")
    return list(range(settings.solver.seed, settings.solver.seed + seeds))


def _as_words(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)
