"""CSV files that a run writes while a person may read them."""

import csv
import io
from pathlib import Path

from ohem.errors import InputError
from ohem.io.files import describe_os_error


class DamagedCSV(ValueError):
    """The content of a CSV file is not whole; the message says why."""


def read_text(path: Path) -> str | None:
    """Reads a file in UTF-8; returns None where it does not exist.

    Raises:
        InputError: the file cannot be read.
        DamagedCSV: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise DamagedCSV("it is not UTF-8") from error


def parse_rows(text: str) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows in `text`; raises `DamagedCSV` where it is no CSV or its end is missing."""
    if not text.endswith("\n"):
        raise DamagedCSV("its last line is cut short")
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise DamagedCSV(f"it is no CSV: {error}") from error
    return header, rows
