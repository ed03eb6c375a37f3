"""The console, which prints what people call their classes, files and runs as it is."""

from rich.console import Console
from rich.markup import escape as escape

__all__ = ["escape", "make_console"]


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console to which `[red]` and `:smile:` are text, also in the cells and titles of tables."""
    return Console(stderr=stderr, markup=False, emoji=False)
