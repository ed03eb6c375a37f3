"""Runs the command line in this process, as a user runs it from a shell."""

import contextlib
import io
from typing import NamedTuple

from ohem.cli import main


class Result(NamedTuple):
    """Exit status and output of a command."""

    code: int
    out: str
    err: str


def ohem(*arguments: object) -> Result:
    """Runs `ohem ARGUMENTS...`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def sentence(result: Result) -> str:
    """Returns the one sentence that bad input gets, and fails unless the exit status is 2."""
    lines = [line for line in result.err.splitlines() if line.startswith("ohem: ") and "warning:" not in line]
    assert result.code == 2, result
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    return lines[0].removeprefix("ohem: ")
