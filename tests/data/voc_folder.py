"""A tiny data set in VOC layout, for any test that needs one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """Write noise images with the given annotations and split files; returns `folder`."""
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
