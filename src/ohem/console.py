"""The console, which prints what people call their classes, files and runs as it is."""

from rich.console import Console
from rich.markup import escape as escape
from rich.table import Table

__all__ = ["escape", "make_console", "make_table"]


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console to which `[red]` and `:smile:` are text, also in the cells and titles of tables."""
    return Console(stderr=stderr, markup=False, emoji=False)


def make_table(*columns: str, title: str | None = None) -> Table:
    """Returns an empty table that folds long text, where rich would cut it and long names would be the same."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
