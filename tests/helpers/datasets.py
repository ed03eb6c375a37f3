"""Tiny data sets in VOC layout and in COCO's format, and images with an EXIF orientation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# name, xmin, ymin, xmax, ymax (1-based, end included), difficult
Thing = tuple[str, float, float, float, float, int]
# height, width, objects
Picture = tuple[int, int, Sequence[Thing]]

OBJECT = """  <object><name>{0}</name><difficult>{5}</difficult>
    <bndbox><xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox></object>
"""


def make_voc(
    folder: Path, images: Mapping[str, Picture], splits: Mapping[str, Sequence[str]], suffix: str = ".png"
) -> Path:
    """Writes noise images with the given annotations and split files; returns `folder`."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for stem, (height, width, things) in images.items():
        pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{stem}{suffix}")
        size = f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        text = f"<annotation>\n{size}{''.join(OBJECT.format(*thing) for thing in things)}</annotation>\n"
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
    for split, stems in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return folder


def annotation(image_id: int, category_id: int, bbox: list[float], **fields: Any) -> dict[str, Any]:
    """Returns the annotation of an object; `bbox` is [x, y, width, height]."""
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **fields}


def write_coco(
    path: Path,
    images: Mapping[str, tuple[int, int, int]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Mapping[str, int],
) -> Path:
    """Writes the JSON file of `images` (file name -> id, height, width); annotations are numbered from 1."""
    content = {
        "images": [{"id": i, "file_name": name, "height": h, "width": w} for name, (i, h, w) in images.items()],
        "annotations": [{"id": i, "iscrowd": 0, **thing} for i, thing in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
    }
    path.write_text(json.dumps(content))
    return path


def write_noise(folder: Path, images: Mapping[str, tuple[int, int, int]]) -> Path:
    """Writes an image of noise for each of `images`, as in `write_coco`."""
    noise = np.random.default_rng(0)
    for name, (_, height, width) in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


def save_turned(stored: np.ndarray, path: Path, orientation: int) -> None:
    """Saves the pixels `stored`, uint8 `[H, W, 3]`, with an orientation by which viewers turn them."""
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **options)
