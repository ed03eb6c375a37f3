"""The tables of a mining log, read with checks."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.mining_log import COLUMNS

TABLES: Mapping[str, Sequence[str]] = {
    "rows": tuple(COLUMNS),
    "images": ("image", "object", "visits", "mined", "chosen", "loss"),
    "periods": ("first_step", "steps", "minable", "chosen", "loss", "ious", "labels"),
}
"""Columns of the tables."""
Columns = Mapping[str, list[Any]]


def read_tables(folder: Path, user: str, names: Collection[str] = tuple(TABLES)) -> dict[str, Columns] | None:
    """Reads tables of `TABLES`.

    Args:
        folder: folder of the tables; those may be in its folder `mining`.
        user: command that reads them, for messages.
        names: the tables to read.

    Returns:
        The columns of each table, or None if there is no mining log.

    Raises:
        InputError: pyarrow is missing, or a table is missing or damaged.
    """
    files = [f"{name}.parquet" for name in TABLES]
    places = [place for place in (folder, folder / "mining") if any((place / name).exists() for name in files)]
    if not places:
        return None
    return {name: _read(places[0] / f"{name}.parquet", TABLES[name], user) for name in names}


def _read(path: Path, columns: Sequence[str], user: str) -> Columns:
    parquet = import_extra("pyarrow.parquet", user)
    try:
        read = parquet.read_table(path, columns=list(columns), page_checksum_verification=True)
        table: Columns = read.to_pydict()
    except (OSError, ValueError, KeyError) as error:  # those of pyarrow are kinds of these
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no table of a mining log ({reason}): train again, or remove the folder") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}: it is of another version; train again, or remove it")
    return table
