"""A data set of coloured rectangles in VOC layout, small enough to train on in a test, and the options that do so."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.voc_folder import OBJECT

NAMES = ("blue", "red")
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def make_toy(folder: Path, splits: dict[str, Sequence[str]] | None = None) -> Path:
    """Images 64 x 80 with one red and one blue rectangle each; splits `train` (a-f) and `test` (g, h) by default."""
    splits = splits or {"train": tuple("abcdef"), "test": tuple("gh")}
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, stems in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            _make_image(folder, stem)
    return folder


def _make_image(folder: Path, stem: str) -> None:
    rng = np.random.default_rng(sum(map(ord, stem)))
    pixels = rng.integers(90, 140, (64, 80, 3))
    text = "<annotation><size><width>80</width><height>64</height><depth>3</depth></size>\n"
    for i, name in enumerate(NAMES):
        x, y = 4 + 40 * i + int(rng.integers(0, 8)), int(rng.integers(4, 30))
        pixels[y : y + 24, x : x + 20] = COLOURS[name]
        text += OBJECT.format(name, x + 1, y + 1, x + 20, y + 24, 0)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{stem}.png")
    (folder / "Annotations" / f"{stem}.xml").write_text(text + "</annotation>\n")


def training(
    data: Path, *, steps: int = 2, images: int = 2, test: str | None = "test", recipe: str = "demo-ohem"
) -> list[object]:
    """Options of `ohem train RUN` for a few steps on the toy data."""
    tested = ["--data.test", f"{data}:{test}"] if test else []
    return [
        *["--recipe", recipe, "--data.train", f"{data}:train", *tested, "--data.short", 64, "--data.long", 80],
        *["--solver.steps", steps, "--solver.images", images, "--proposals.jobs", 1, "--run.accelerator", "cpu"],
    ]
