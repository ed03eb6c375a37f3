"""The code of the documentation: its Python blocks, and the commands of its shell blocks."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ohem import with_ohem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")),
]
NOT_RUN = "Not run by the tests: "
"""A paragraph that begins with this and gives the reason, directly before a block, exempts the block."""
BLOCK = re.compile(r"(?P<before>[^\n]*)\n*^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = ("ohem", "pip", "python", "make", "torchrun")
# Each command writes the number of its arguments and the arguments. There is no PATH: no other command is known.
RECORD = "".join(f"{name}() {{ printf '%s\\0' $(($# + 1)) {name} \"$@\"; }}\n" for name in COMMANDS)


def name_of(page: Path) -> str:
    """Returns the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Returns the blocks of `language`, each after as many empty lines as there are before it in the page.

    A block after a reason not to run it is left out. The blocks of a notebook are its code cells.
    """
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"] if language == "python" else []
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [
        "\n" * text[: match.start("code")].count("\n") + match["code"]
        for match in BLOCK.finditer(text)
        if match["language"] == language and not match["before"].lstrip("*_").startswith(NOT_RUN)
    ]


def run_python(page: Path, old: str = "", new: str = "") -> dict[str, Any]:
    """Runs the Python blocks of a page in order, with `new` in place of `old`, in one namespace, and returns it.

    What the page registers is forgotten, for the other tests.
    """
    names: dict[str, Any] = {"__name__": page.stem.replace("-", "_")}
    known = dict(with_ohem._known)
    try:
        for block in blocks(page, "python"):
            exec(compile(block.replace(old, new), str(page), "exec"), names)
    finally:
        # Adapters of optional packages, which are imported once, stay. What the page registers does not.
        adapters = {kind: entry for kind, entry in with_ohem._known.items() if entry[0].__module__.startswith("ohem.")}
        with_ohem._known = known | adapters
    return names


def run_shell(page: Path) -> list[list[str]]:
    """Runs the shell blocks of a page, with commands that only record their arguments, and returns these."""
    bash = shutil.which("bash")
    assert bash is not None
    commands = []
    for block in blocks(page, "sh"):
        script = f"set -eu\n{RECORD}{block.lstrip()}"
        done = subprocess.run(
            [bash, "-c", script], env={"PATH": os.devnull}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{page}: {done.stderr}"
        commands += list(_split(done.stdout.split("\0")[:-1]))
    return commands


def code_spans(page: Path) -> list[str]:
    """Returns the inline code of a page, with single blanks."""
    if page.suffix == ".ipynb":
        return []
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def _split(fields: list[str]) -> Iterator[list[str]]:
    while fields:
        count = int(fields[0])
        yield fields[1 : count + 1]
        fields = fields[count + 1 :]
