"""`--help`, `--version` and `ohem recipes`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ohem.config.recipes import RECIPES
from tests.helpers.command_line import ohem

HEADINGS = ("Model", "Data", "Proposals", "Sampler", "Solver", "Test", "Run")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def text_of(*arguments: str) -> str:
    """Returns the output of a command without frames and line ends."""
    return " ".join(ohem(*arguments).out.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"))).split())


def test_import_does_not_load_torch() -> None:
    program = "import sys, ohem.cli, ohem; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_help_and_version() -> None:
    text = ohem("--help").out
    runs, data = ("train", "eval", "loss", "detect", "bootstrap", "hard"), ("demo", "propose", "recipes")
    assert all(command in text for command in [*runs, *data, "compare", "reproduce", "bench"])
    assert ohem("--version").out.strip()


@pytest.mark.parametrize("command", ["train", "compare", "bench"])
def test_options_of_a_recipe_are_below_headings(command: str) -> None:
    text = ohem(command, "--help").out
    parts = [text.index(f"─ {heading} ─") for heading in HEADINGS]
    assert parts == sorted(parts)
    for heading, start, end in zip(HEADINGS, parts, [*parts[1:], len(text)], strict=True):
        assert set(re.findall(r"^│ --(\w+)", text[start:end], re.MULTILINE)) == {heading.lower()}


@pytest.mark.parametrize("command", ["eval", "detect", "bootstrap", "hard"])
def test_test_options_are_below_a_heading(command: str) -> None:
    text = ohem(command, "--help").out
    assert text.index("─ Test ─") < text.index("--test.scales")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_says_that_the_recipe_gives_the_defaults(command: str) -> None:
    text = text_of(command, "--help")
    assert "An option that is not given has the value of the recipe; ohem recipes NAME prints them." in text
    options = text[text.index(" Model ") :]
    assert re.search(r"--solver\.lr (FLOAT )?Learning rate", options)  # cyclopts 4 prints no types
    assert "[default:" not in options


def test_defaults_are_printed_as_a_user_would_type_them() -> None:
    text = text_of("compare", "--help")
    assert "[default: frcn ohem]" in text
    assert "[default: 3]" in text
    for command in ("eval", "bench", "propose", "reproduce"):
        assert not any(f"[default: {value}]" in text_of(command, "--help") for value in ("()", "None", "False"))


def test_recipes_lists_names_commands_and_figures_of_the_paper() -> None:
    text = ohem("recipes").out
    for name, entry in RECIPES.items():
        assert f"--recipe {name}" in text
        assert entry.paper is None or f"mAP {entry.paper} in the paper" in text


def test_recipes_of_the_paper_are_last() -> None:
    kinds = [
        "paper" if entry.paper else next((kind for kind in ("small", "demo") if name.startswith(kind)), "torchvision")
        for name, entry in RECIPES.items()
    ]
    assert list(dict.fromkeys(kinds)) == ["small", "torchvision", "demo", "paper"]
    assert kinds == sorted(kinds, key=["small", "torchvision", "demo", "paper"].index)


COMPLETE = """
. "$1"
COMP_WORDS=(ohem train runs/mine "$2")
COMP_CWORD=3
"$(complete -p ohem | sed 's/.*-F \\([^ ]*\\).*/\\1/')" ohem
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ohem("--install-completion", "--shell", "bash").code == 0
    script = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "ohem"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", script, "--run.lo"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["--run.log-every", "--run.loggers", "--run.loss-every"]
