"""The rules of CONTRIBUTING.md on the size of modules and folders, and on names and prose."""

import builtins
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = [
    path for name in ("src", "tests", "benchmarks", "examples", "docs") for path in sorted((ROOT / name).rglob("*.py"))
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_MODULES, MOST_LINES, MOST_README_WORDS = 14, 400, 900
# Words that say nothing as the name, or as a part of the name, of a thing.
NOT_IN_NAMES = frozenset(
    (
        *("told", "tell", "tells", "shown", "words", "beside", "mend", "mended", "apart", "found", "each"),
        *("look", "looks", "looked", "looking", "ask", "asks", "asked"),
    )
)
# In prose "each" and "found" are plain English.
NOT_IN_PROSE = (NOT_IN_NAMES | {"mends"}) - {"each", "found", "words"}
OPTION = re.compile(r"--[\w.-]+")  # such as those that ohem 0.1 had
TEXT = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))


def _parts(name: str) -> list[str]:
    """Returns the words of a name in snake_case or CamelCase."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _faults_of_code(text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            used = NOT_IN_NAMES.intersection([] if hasattr(builtins, token.string) else _parts(token.string))
        elif token.type in TEXT:
            used = NOT_IN_PROSE.intersection(re.findall(r"[a-z]+", OPTION.sub("", token.string).lower()))
        else:
            continue
        if used:
            yield f"line {token.start[0]}: {', '.join(sorted(used))} in {token.string.strip()[:60]!r}"


def _faults_of_prose(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        used = NOT_IN_PROSE.intersection(re.findall(r"[a-z]+", line.lower()))
        if used:
            yield f"line {number}: {', '.join(sorted(used))}"


@pytest.mark.parametrize("name", ["src", "tests", "benchmarks", "examples"])
def test_folders_are_small(name: str) -> None:
    folders = [path for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_dir()]
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_modules_are_short() -> None:
    counts = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in CODE}
    assert {path: count for path, count in counts.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_comments_are_plain(path: Path) -> None:
    if path != Path(__file__).resolve():  # it holds the list
        assert list(_faults_of_code(path.read_text())) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_plain(path: Path) -> None:
    assert list(_faults_of_prose(path.read_text())) == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_README_WORDS


def test_links_of_pages_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page, link in links
        if ":" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


def test_the_rules_notice() -> None:
    assert list(_faults_of_code("found = 1  # as the person asked\n")) == [
        "line 1: found in 'found'",
        "line 1: asked in '# as the person asked'",
    ]
    assert list(_faults_of_code("def lookUpEach(self): 'Not found for each image.'\n")) == [
        "line 1: each, look in 'lookUpEach'"
    ]
    assert list(_faults_of_code("NEW = {'--apart': FileNotFoundError}\n")) == []
    assert list(_faults_of_prose("one\nbeside the data")) == ["line 2: beside"]
