"""The options of a command: from the command line, then from the --config file, then from the recipe."""

from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args
from warnings import catch_warnings, simplefilter

import yaml
from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from ohem.config.recipe_file import read_run
from ohem.config.recipes import named_recipe
from ohem.config.renamed import check_arguments, rename
from ohem.config.schema import Recipe, TestConfig
from ohem.errors import InputError
from ohem.io.files import describe_os_error
from ohem.io.yaml_texts import format_yaml, parse_yaml

DEFAULT_RECIPE = "small-frcn"
"""Recipe of `ohem compare` if none is given."""
COMPARING = {("compare",)}
TESTING = {("eval",), ("detect",), ("bootstrap",)}


def fill_options(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fills the options that the command line does not give; cyclopts calls it before it binds the arguments."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    _read_none(arguments)
    if "--config" in given:
        path = Path(given["--config"])
        Dict(_read_yaml(path), source=str(path), use_commands_as_keys=False)(app, commands, arguments)
    if "--recipe" in given or commands in COMPARING:
        recipe = named_recipe(given.get("--recipe", DEFAULT_RECIPE))
        _fill_groups(_own_values(recipe, Recipe()), app, commands, arguments)
    elif commands in TESTING and "RUN" in given:
        with catch_warnings():
            simplefilter("ignore")  # the command reads the recipe again, and warns then
            test = read_run(Path(given["RUN"])).test
        _fill_groups({"test": _own_values(test, TestConfig())}, app, commands, arguments)


def _read_none(arguments: ArgumentCollection) -> None:
    """Reads `none` as no value where an option may have none, as cyclopts does from 5 on."""
    for argument in arguments:
        hints = get_args(argument.field_info.annotation)
        if type(None) in hints and str not in hints:
            argument.tokens = [
                token.evolve(value="", implicit_value=None) if token.value == "none" else token
                for token in argument.tokens
            ]


def _fill_groups(options: dict[str, Any], app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fills options by group: cyclopts compares each value with all arguments that it gets, which takes long."""
    for group, values in options.items():
        of_group = ArgumentCollection([a for a in arguments if a.name.split(".")[0] == f"--{group}"])  # type: ignore[no-untyped-call]
        Dict({group: values}, use_commands_as_keys=False)(app, commands, of_group)


def parse_options(arguments: Sequence[str], base: Recipe) -> Recipe:
    """Parses options of `ohem train` that the user gave.

    Args:
        arguments: arguments of a command line, ["--solver.lr", "0.1"].
        base: recipe that gives the other options.

    Raises:
        cyclopts.CycloptsError: an argument is not an option, or a value does not fit.
        InputError: an option has its name of 0.1, or the --config file is missing or damaged.
    """
    check_arguments(arguments)
    app = App(
        result_action="return_value",
        config=[fill_options, partial(_fill_groups, _own_values(base, Recipe()))],
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
        help_flags=(),
        version_flags=(),
    )
    app.default(_as_recipe)
    recipe: Recipe = app(arguments, exit_on_error=False, print_error=False)
    return recipe


def _as_recipe(
    *,
    config: Path | None = None,
    devices: str | None = None,
    settings: Annotated[Recipe, Parameter(name="*")] = Recipe(),  # noqa: B008  frozen
) -> Recipe:
    return settings if devices is None else replace(settings, run=replace(settings.run, devices=devices))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] | Any = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: correct --config, or leave it out") from error
    except OSError as error:
        raise InputError(f"--config {describe_os_error(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not well-formed YAML ({error}): correct it") from error
    if not content or not isinstance(content, dict):
        raise InputError(f"{path} has no options by name: write them nested, as in recipe.yaml of a run")
    for group in (field.name for field in fields(Recipe)):
        if not isinstance(content.get(group, {}), dict):
            raise InputError(f"{path}: {group} is a group of options: write them below it, as in recipe.yaml of a run")
    _, changes = rename(content)
    if changes:
        raise InputError(f"{path} has option names of ohem 0.1: rename {', '.join(changes)}")
    return content


def given_values(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested options that have a value, with lists in place of tuples."""
    values = {key: given_values(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None and v != ()}


def _own_values(options: Any, default: Any) -> dict[str, Any]:
    """Returns the nested options that differ from `default`: cyclopts fills in the others, and takes long for each."""
    differing = {
        field.name: _own_values(value, usual) if is_dataclass(value) else value
        for field in fields(options)
        if (value := getattr(options, field.name)) != (usual := getattr(default, field.name))
    }
    return given_values(differing)


def format_recipe(recipe: Recipe) -> str:
    """Returns the options of `recipe` as YAML for a --config file; options without a value are left out."""
    return format_yaml(given_values(asdict(recipe)))


def format_default(value: object) -> str | None:
    """Returns a default for `--help`, as the user would type it; None if there is nothing to type."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or None
    return None if value is None or isinstance(value, bool) else str(value)
