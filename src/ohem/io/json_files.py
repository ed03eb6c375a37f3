"""JSON files."""

import json
from pathlib import Path
from typing import Any

from ohem.io.files import atomic_write


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path`, indented, in UTF-8; a failure leaves the file as it was.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
