"""The suspects as rows, for audit.json, audit.csv and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ohem.data.dataset import DetectionSet
from ohem.insight.suspects.scores import ABOUT, Box, Suspect
from ohem.io.files import atomic_write

COLUMNS = (
    "number", "image", "file", "kind", "score", "about", "given", "given_class", "proposed_class",
    *(f"{which}_{corner}" for which in ("given", "proposed") for corner in ("x1", "y1", "x2", "y2")),
)  # fmt: skip


def as_rows(suspects: Sequence[Suspect], data: DetectionSet) -> list[dict[str, Any]]:
    """Returns a row for each suspect, with the name and file of its image and the names of classes.

    Boxes are `[x1, y1, x2, y2]` in pixels of the upright image, or None.
    """
    return [
        {
            "number": number,
            "image": data.ids[suspect.image],
            "file": str(data.path(suspect.image)),
            "kind": suspect.kind,
            "score": round(suspect.score, 4),
            "about": _describe(suspect, data.classes),
            "given": suspect.given,
            "given_class": _name(suspect.given_label, data.classes),
            "given_box": _rounded(suspect.given_box),
            "proposed_class": _name(suspect.proposed_label, data.classes),
            "proposed_box": _rounded(suspect.proposed_box),
        }
        for number, suspect in enumerate(suspects, start=1)
    ]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows as CSV: a column for each corner of a box, empty fields for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        corners = {
            f"{which}_{corner}": value
            for which in ("given", "proposed")
            for corner, value in zip(("x1", "y1", "x2", "y2"), row[f"{which}_box"] or [None] * 4, strict=True)
        }
        writer.writerow({**row, **corners})
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _describe(suspect: Suspect, classes: Sequence[str]) -> str:
    given, proposed = _name(suspect.given_label, classes), _name(suspect.proposed_label, classes)
    if suspect.kind == "missing":
        return f"{ABOUT['missing']} of {proposed}"
    return (
        f"{ABOUT[suspect.kind]}: {given}, not {proposed}"
        if suspect.kind == "class"
        else f"{ABOUT[suspect.kind]}: {given}"
    )


def _name(label: int | None, classes: Sequence[str]) -> str | None:
    return None if label is None else classes[label - 1]


def _rounded(box: Box | None) -> list[float] | None:
    return None if box is None else [round(corner, 2) for corner in box]
