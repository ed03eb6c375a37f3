"""Files that are never half-written: written beside and renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; renames it to `path` if all goes well, removes it if not.

    Each process has its own, so that of two that write at once the last one wins. An OSError names `path`.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(beside)):  # None: the disk is full
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)
