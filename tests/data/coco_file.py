"""A tiny data set in COCO's format, for any test that needs one."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def annotation(image_id: int, category_id: int, bbox: list[float], **fields: Any) -> dict[str, Any]:
    """An object: `bbox` is [x, y, width, height]."""
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **fields}


def write_coco(
    path: Path,
    images: Mapping[str, tuple[int, int, int]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Mapping[str, int],
) -> Path:
    """Write the JSON file of `images` (file name -> id, height, width); annotations are numbered from 1."""
    content = {
        "images": [{"id": i, "file_name": name, "height": h, "width": w} for name, (i, h, w) in images.items()],
        "annotations": [{"id": i, "iscrowd": 0, **thing} for i, thing in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
    }
    path.write_text(json.dumps(content))
    return path


def write_noise(folder: Path, images: Mapping[str, tuple[int, int, int]]) -> Path:
    """Write a picture of noise for each of `images`, as in `write_coco`."""
    noise = np.random.default_rng(0)
    for name, (_, height, width) in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder
