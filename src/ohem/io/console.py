"""The console: it prints the names of classes, files and runs as they are."""

import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

from rich.console import Console
from rich.markup import escape as escape
from rich.table import Table

__all__ = [
    *("discard_output", "escape", "escape_what_the_encoding_lacks", "exit_with", "format_warning"),
    *("make_console", "make_table"),
]


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console that prints `[red]` and `:smile:` as text, also in the cells and titles of tables."""
    return Console(stderr=stderr, markup=False, emoji=False)


def make_table(*columns: str, title: str | None = None) -> Table:
    """Returns an empty table that folds long text; rich would cut it, and long names would be the same."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def escape_what_the_encoding_lacks() -> None:
    """Makes a terminal or file of another encoding than UTF-8 show escapes of the characters that it cannot hold."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a test
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Keeps Python from writing the rest of the output at exit, where nothing reads it."""
    with suppress(OSError):  # in a test stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_with(sentence: str) -> NoReturn:
    """Prints `sentence` as an error, and ends the command with exit status 2."""
    print(f"ohem: {' '.join(sentence.split())}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    raise SystemExit(2) from None


def format_warning(message: Warning | str, *_: object, **__: object) -> str:
    """Returns a warning without the file and the line of our code."""
    return f"ohem: warning: {' '.join(str(message).split())}\n"
