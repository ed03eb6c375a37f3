"""Translates names of ohem 0.1: options of the command line, --config files, and recipe.yaml of old runs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ohem.errors import InputError

OPTIONS = {
    "sampler.classifier": "sampler.cls_weight",
    "sampler.box_reg": "sampler.box_weight",
    "model.rescored": "model.rescore_top",
}
"""Options of a recipe: old and new name."""
COMMAND_OPTIONS = {"--arms": "--methods", "--apart": "--sequential"}
"""Options of `ohem compare` and `ohem bench`: old and new name."""
VALUES = {"sampler.name": {"own": "builtin"}}
"""Values of options: old and new name."""
OLD_DEFAULTS = {
    "fg_fraction": 0.25, "bg_lo": 0.1, "nms_iou": 0.7, "per_image": True, "suppress": "image", "inclusive": False,
    "cls_weight": 1.0, "box_weight": 1.0, "pressure": 100.0, "negatives_per_positive": 3.0,
}  # fmt: skip
"""Defaults that 0.1 wrote into recipe.yaml, also for samplers that do not have the option."""
OTHER_DEFAULTS = {("hierarchical", "nms_iou"), ("hierarchical", "box_weight"), ("ratio", "nms_iou")}
"""Samplers whose class has another default: a value of `OLD_DEFAULTS` is not the default of the class."""


class Preset(NamedTuple):
    """Options that a method of 0.1 gave to a sampler, and the sampler that has them as its defaults today."""

    old_name: str
    options: Mapping[str, Any]
    name: str


PRESETS = (
    Preset("ohem", {"per_image": False, "suppress": "label", "inclusive": True}, "release"),
    Preset("separate", {"nms_iou": 1.0, "box_weight": 0.0}, "mmdetection"),
    Preset("hierarchical", {"nms_iou": 0.5, "box_weight": 0.0}, "hierarchical"),
    Preset("ratio", {"nms_iou": 1.0}, "ratio"),
)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises `InputError` that names the new option if a command line has an option of 0.1."""
    old_names = {_option(old): _option(new) for old, new in OPTIONS.items()} | COMMAND_OPTIONS
    for argument in arguments:
        option = argument.split("=")[0]
        if option in old_names:
            raise InputError(f"{option} is called {old_names[option]} since ohem 0.2: use that name")
    pairs = [*pairwise(arguments), *(argument.split("=", 1) for argument in arguments if "=" in argument)]
    for option, values in VALUES.items():
        for argument, value in pairs:
            if argument == _option(option) and value in values:
                raise InputError(f"{argument} {value} is called {values[value]} since ohem 0.2: use that name")


def rename(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translates the names in a YAML file of ohem 0.1.

    Args:
        content: groups of options by their names; other entries stay as they are.

    Returns:
        The content with the names of today, and a list of the changes, such as "model.rescored -> model.rescore_top".
    """
    groups = {name: dict(group) if isinstance(group, Mapping) else group for name, group in content.items()}
    changes = []
    for old, new in OPTIONS.items():
        group, name = old.split(".")
        options = groups.get(group)
        if isinstance(options, dict) and name in options:
            options[new.split(".")[1]] = options.pop(name)
            changes.append(f"{old} -> {new}")
    for option, values in VALUES.items():
        group, name = option.split(".")
        options = groups.get(group)
        if isinstance(options, dict) and isinstance(options.get(name), str) and options[name] in values:
            changes.append(f"{option} {options[name]} -> {values[options[name]]}")
            options[name] = values[options[name]]
    return groups, changes


def today_s_sampler(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a sampler in recipe.yaml of 0.1 as a recipe of today has them.

    Options that 0.1 filled in with the default of the sampler are left out, and a sampler with the options of one of
    `PRESETS` gets its name.

    Args:
        options: options of the sampler with the names of today.
    """
    for preset in PRESETS:
        if options.get("name") == preset.old_name and preset.options.items() <= options.items():
            options = {"name": preset.name} | {
                option: value for option, value in options.items() if option not in {"name", *preset.options}
            }
            break
    return {
        option: value
        for option, value in options.items()
        if option not in OLD_DEFAULTS
        or value != OLD_DEFAULTS[option]
        or (options.get("name"), option) in OTHER_DEFAULTS
    }


def today_s_proposals(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of proposals in recipe.yaml of an earlier version as a recipe of today has them.

    Before there was the option `width`, no image was reduced. Before there were unions, `mode` was one text.

    Args:
        options: options of the proposals.
    """
    mode = options.get("mode")
    return {"width": 0, **options, **({"mode": [mode]} if isinstance(mode, str) else {})}


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"
