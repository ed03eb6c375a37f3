"""audit.html: a page to go through the suspects, which contains its pictures and needs no server."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from ohem.data.dataset import DetectionSet
from ohem.io.digests import digest_of_file
from ohem.io.files import atomic_write
from ohem.io.progress import tracked

SIDE = 420
"""Longest side of a picture in pixels."""
MARGIN = 0.6
"""Space around the boxes, as a share of their size."""
MOST_BYTES = 18_000_000
"""The page has no more bytes of pictures."""


def write_page(path: Path, rows: Sequence[dict[str, Any]], data: DetectionSet, most: int) -> int:
    """Writes the page of the first `most` suspects, or of fewer where it would become too large.

    Args:
        path: HTML file to write; the decisions are kept by the browser under the digest of audit.json next to it.
        rows: suspects of `as_rows`.
        data: the data set.
        most: highest number of suspects.

    Returns:
        The number of suspects in the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pictured: list[dict[str, Any]] = []
    total = 0
    indices = {name: index for index, name in enumerate(data.ids)}
    for row in tracked(rows[:most], "pictures"):
        picture, view = _picture(row, data, indices[row["image"]])
        total += len(picture)
        if total > MOST_BYTES:
            break
        pictured.append({**row, "picture": picture, "view": view})
    environment = Environment(loader=PackageLoader("ohem.insight.suspects"), autoescape=True, undefined=StrictUndefined)
    report = path.with_name("audit.json")
    text = environment.get_template("audit.html").render(
        suspects=pictured,
        total=len(rows),
        sources=[str(source) for source in data.sources],
        classes=list(data.classes),
        key=digest_of_file(report) if report.exists() else "",
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return len(pictured)


def _picture(row: dict[str, Any], data: DetectionSet, index: int) -> tuple[str, list[float]]:
    """Returns the part of the image around the boxes as a data URI, and that part `[x, y, width, height]` in pixels."""
    height, width = data.size(index)
    boxes = [box for box in (row["given_box"], row["proposed_box"]) if box]
    x1, y1 = (min(box[i] for box in boxes) for i in (0, 1))
    x2, y2 = (max(box[i] for box in boxes) for i in (2, 3))
    space = MARGIN * max(x2 - x1, y2 - y1) + 10
    view = [max(x1 - space, 0), max(y1 - space, 0), min(x2 + space, width), min(y2 + space, height)]
    left, top, right, bottom = (int(view[0]), int(view[1]), round(view[2] + 0.5), round(view[3] + 0.5))
    part = to_pil_image(data.image(index)[:, top:bottom, left:right])
    part.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    part.save(file, "JPEG", quality=72)
    right, bottom = min(right, width), min(bottom, height)
    picture = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return picture, [left, top, right - left, bottom - top]
