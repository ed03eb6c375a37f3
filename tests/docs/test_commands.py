"""The commands of all pages are commands that exist: `ohem`, `pip install`, `make` and `python`."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError, MissingArgumentError

from ohem.cli import app
from ohem.cli.experiments import compare, reproduce
from ohem.config.renamed import check_arguments
from ohem.config.resolve import parse_options
from ohem.config.schema import Recipe
from ohem.errors import InputError
from ohem.experiments.methods import parse_methods
from tests.docs.pages import PAGES, PYPROJECT, ROOT, blocks, code_spans, name_of, run_shell

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, flags=re.MULTILINE))
VARIABLES = set(re.findall(r"^(\w+) \??=", MAKEFILE, flags=re.MULTILINE))


def requirements() -> set[str]:
    """Returns the names of all packages in pyproject.toml."""
    groups = [*PYPROJECT["project"]["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    return {
        re.split(r"[^\w.-]", text)[0] for group in [PYPROJECT["project"]["dependencies"], *groups] for text in group
    }


def options_of(command: str) -> set[str]:
    """Returns the options of a command of `ohem`; `ohem reproduce` also has those of what it runs."""
    names = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    return names | {"--help"} | (options_of("train") | options_of("bench") if command == "reproduce" else set())


COMMANDS = [name for name in app if not name.startswith("-")]
OPTIONS = {command: options_of(command) for command in COMMANDS}


def check_ohem(arguments: list[str]) -> None:
    """Parses a command line of `ohem` up to the call of its function."""
    check_arguments(arguments)
    command, bound, *_ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    if command is compare:
        parse_methods(bound.arguments.get("methods", ("frcn", "ohem")), Recipe())
    if command is reproduce and bound.arguments["table"] == "table2":
        check_ohem(["bench", *bound.arguments.get("options", ())])
    elif command is reproduce:
        parse_options(bound.arguments.get("options", ()), Recipe())


def check_pip(arguments: list[str]) -> None:
    """Checks that the extras exist, and that other packages are those that the tests use."""
    subcommand, *packages = arguments
    assert subcommand == "install"
    for package in packages:
        match = re.fullmatch(r"\.(?:\[([\w,]+)])?", package)
        extras = {extra for extra in (match[1] or "").split(",") if extra} if match else set()
        assert extras <= set(PYPROJECT["project"]["optional-dependencies"]), package
        assert match or package in requirements(), package


def check_make(arguments: list[str]) -> None:
    """Checks that targets and variables exist."""
    for argument in arguments:
        name, given, _ = argument.partition("=")
        assert name in (VARIABLES if given else TARGETS), argument


def check_python(arguments: list[str]) -> None:
    """Checks that the file or module exists, and has the options; those after `--` are of a training."""
    is_module = arguments[0] == "-m"
    if "--" in arguments:
        end = arguments.index("--")
        parse_options(arguments[end + 1 :], Recipe())
        arguments = arguments[:end]
    spec = importlib.util.find_spec(arguments[1]) if is_module else None
    script = Path(spec.origin) if spec and spec.origin else ROOT / arguments[0]
    if script.name == "__init__.py":
        script = script.with_name("__main__.py")
    text = script.read_text() + (ROOT / "benchmarks" / "common.py").read_text()
    assert [item for item in arguments[1:] if item.startswith("--") and f'"{item}"' not in text] == []


CHECKS = {"ohem": check_ohem, "pip": check_pip, "make": check_make, "python": check_python}


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every run of a page exist."""
    monkeypatch.setattr("ohem.config.resolve.read_run", lambda folder: Recipe())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name_of)
def test_commands_of_the_page_exist(page: Path) -> None:
    commands = run_shell(page)
    assert commands
    # Commands that differ in numbers only, such as the seed of a loop, are parsed once: that takes a tenth of a second.
    for name, *arguments in {re.sub(r"\d+", "0", shlex.join(command)): command for command in commands}.values():
        try:
            CHECKS[name](arguments)
        except (AssertionError, CycloptsError, InputError, OSError) as error:
            pytest.fail(f"{shlex.join([name, *arguments])}: {error}")


def faults_of(span: str) -> Iterator[str]:
    """Yields what inline code names that does not exist: a command of `ohem`, an option, a target."""
    parts = span.replace("...", "").split()
    options = [part.partition("=")[0] for part in parts if part.startswith("--")]
    if parts[:1] == ["make"] and len(parts) > 1:
        yield from (part for part in parts[1:] if part not in TARGETS and "=" not in part and part.islower())
    elif parts[:1] == ["ohem"] and len(parts) > 1 and not parts[1].isupper():
        known = OPTIONS.get(parts[1], set()) if not parts[1].startswith("--") else set(app)
        yield from ([parts[1]] if not parts[1].startswith("--") and parts[1] not in OPTIONS else [])
        yield from (option for option in options if option not in known)
    elif parts and parts[0].startswith("--"):
        yield from (option for option in options if not any(option in known for known in OPTIONS.values()))


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=name_of)
def test_inline_code_names_what_exists(page: Path) -> None:
    assert [(span, fault) for span in code_spans(page) for fault in faults_of(span)] == []


def test_the_checks_notice(tmp_path: Path) -> None:
    assert [list(faults_of(span)) for span in ("ohem trian", "ohem eval R --tset.top 1", "--nothing", "make dmeo")] == [
        ["trian"],
        ["--tset.top"],
        ["--nothing"],
        ["dmeo"],
    ]
    assert [list(faults_of(span)) for span in ("ohem COMMAND --help", "--test.voting --curve 8", "make lint test")] == [
        [],
        [],
        [],
    ]
    wrong = {
        "ohem train runs/a": MissingArgumentError,
        "ohem train runs/a --recipe smal": InputError,
        "ohem compare --methods frcn ohm": InputError,
        "ohem reproduce table1 --small --sampler.nothing 1": CycloptsError,
        "ohem reproduce table2 --small --recipe small-ohem": CycloptsError,
        'pip install ".[nothing]"': AssertionError,
        "pip install nothing": AssertionError,
        "make nothing": AssertionError,
        "make bench NOTHING=1": AssertionError,
        "python examples/nothing.py": OSError,
        "python examples/torchvision_ssd.py --nothing": AssertionError,
        "python -m benchmarks.nothing": OSError,
    }
    for line, kind in wrong.items():
        page = tmp_path / "page.md"
        page.write_text(f"```sh\nfor seed in 0 1; do\n  {line}\ndone\n```\n")
        (name, *arguments), again = run_shell(page)
        assert again == [name, *arguments]
        with pytest.raises(kind):
            CHECKS[name](arguments)
    page.write_text("```sh\nwget $nothing\n```\n")
    with pytest.raises(AssertionError, match="unbound variable"):
        run_shell(page)
