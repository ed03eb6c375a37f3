"""detections.json of `ohem detect`: a JSON list that is valid at any time while it grows."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ohem.errors import InputError
from ohem.io.files import atomic_write

NAME = "detections.json"
KEYS = {"image", "boxes", "labels", "scores"}
PUBLISH_SECONDS = 0.5
FIRST = 10  # images; the JSON file is published after every one of them
SHARE = 20  # later, publishing takes at most 1/20 of the time


def images_of(path: Path) -> list[str]:
    """Returns the images in the detections.json of an earlier call; raises `InputError` where it is another file."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_bytes())
        if not isinstance(entries, list) or not all(isinstance(e, dict) and set(e) == KEYS for e in entries):
            raise ValueError("it has other fields")
        return [str(entry["image"]) for entry in entries]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no file of `ohem detect` ({error}): choose another --out, or move it") from error


class Entries:
    """A JSON list that grows in `file`, at `parts`, and is published as the valid file `path`."""

    def __init__(self, path: Path, parts: Path, file: BinaryIO) -> None:
        self.path = path
        self.parts = parts
        self.file = file
        self.count = 0
        self.size = self.published = 0  # bytes; a signal may interrupt any line
        self.next = 0.0

    def append(self, entry: dict[str, Any]) -> None:
        """Adds `entry`; publishes it now or soon."""
        text = f"{',' if self.size else '['}\n{json.dumps(entry)}".encode()
        self.file.write(text)
        self.file.flush()
        self.size += len(text)
        self.count += 1
        if self.count <= FIRST or time.monotonic() >= self.next:
            self.publish()

    def publish(self) -> None:
        """Writes all entries to `path`, if any is new."""
        size = self.size
        if self.published == size:
            return
        started = time.monotonic()
        with atomic_write(self.path) as temporary:
            shutil.copyfile(self.parts, temporary)
            os.truncate(temporary, size)
            with temporary.open("ab") as file:
                file.write(b"\n]\n")
        self.published = size
        ended = time.monotonic()
        self.next = ended + max(PUBLISH_SECONDS, SHARE * (ended - started))


@contextmanager
def publishing(path: Path) -> Iterator[Entries]:
    """Gives the list of a JSON file, and publishes it at the end, also after an error."""
    for file in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process, since there is one writer
        file.unlink(missing_ok=True)
    parts = path.with_name(f".{path.name}.parts.tmp")
    try:
        with parts.open("wb") as content:
            entries = Entries(path, parts, content)
            try:
                yield entries
            finally:
                entries.publish()
    finally:
        parts.unlink(missing_ok=True)
