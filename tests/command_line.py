"""Runs the command line in this process, as a person would from a shell."""

import contextlib
import io
from typing import NamedTuple

from ohem.cli import main


class Result(NamedTuple):
    """Exit status, and what was printed."""

    code: int
    out: str
    err: str


def ohem(*words: object) -> Result:
    """`ohem WORDS...`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def sentence(result: Result) -> str:
    """The one sentence that bad input ends in, with exit status 2; fails for anything else."""
    lines = [line for line in result.err.splitlines() if line.startswith("ohem: ") and "warning:" not in line]
    assert result.code == 2, result
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    return lines[0].removeprefix("ohem: ")
