"""JSON files."""

import json
from collections import Counter
from pathlib import Path
from reprlib import repr as shortened
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


def parse_json(text: bytes) -> Any:
    """Parses JSON, and refuses an object with two values of one key, of which Python would keep the last.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"one object has the key {shortened(twice)} twice")
    return fields
