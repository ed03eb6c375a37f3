"""The files for forges and for citations say what pyproject.toml, the Makefile and .ci/run say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ohem
from tests.docs.pages import PYPROJECT, ROOT

PROJECT = PYPROJECT["project"]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_citation_names_this_version_and_the_paper() -> None:
    citation = read_yaml("CITATION.cff")
    assert (citation["title"], str(citation["version"]), citation["license"]) == (
        PROJECT["name"],
        ohem.__version__,
        PROJECT["license"],
    )
    assert citation["authors"] == [{"name": "The ohem authors"}]
    [paper] = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_hooks_run_what_make_lint_runs() -> None:
    rule = re.search(r"^lint: setup\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert rule is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in rule[1].splitlines()]
    [local] = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [hook["entry"] for hook in local["hooks"]] == commands


def test_the_workflow_runs_what_ci_runs() -> None:
    [line] = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    steps = read_yaml(".github/workflows/ci.yml")["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [f"make {target}" for target in line.split()[1:]]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md")), ids=lambda path: path.stem)
def test_issue_templates_have_a_name_and_a_purpose(path: Path) -> None:
    _, head, body = path.read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about", "labels"}
    assert body.strip()
    assert all((ROOT / page).exists() for page in re.findall(r"`(docs/[\w/.-]+)`", body))
