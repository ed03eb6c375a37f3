"""A data set of coloured rectangles, small enough to train on in a test, and the options that do so."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from tests.helpers.datasets import OBJECT, annotation, write_coco

NAMES = ("blue", "red")
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
SPLITS = {"train": tuple("abcdef"), "test": tuple("gh")}


def make_toy(folder: Path, splits: dict[str, Sequence[str]] | None = None) -> Path:
    """Writes images of 80 x 64 pixels with a red and a blue rectangle each; splits `train` (a-f) and `test` (g, h)."""
    splits = splits or SPLITS
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, stems in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            _make_image(folder, stem)
    return folder


def make_uneven_toy(folder: Path) -> Path:
    """Writes eight such images `train`, three of which are wider, so that those of a mini-batch are padded."""
    toy = make_toy(folder, {"train": "abcdefgh"})
    for stem in "adf":
        path = toy / "JPEGImages" / f"{stem}.png"
        wider = Image.new("RGB", (96, 64))
        with Image.open(path) as image:
            wider.paste(image)
        wider.save(path)
        edit_xml(toy, "<width>80<", "<width>96<", stem)
    return toy


def make_toy_coco(folder: Path) -> tuple[str, str]:
    """Writes the same images and objects in COCO's format, classes 7 and 3; returns the sources of `train` and `test`.

    Image `a` also has a crowd, and `f` and `h` have no object.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    sources = []
    for split, stems in SPLITS.items():
        things = []
        for stem in stems:
            pixels, corners = _draw(stem)
            Image.fromarray(pixels).save(images / f"{stem}.png")
            if stem not in "fh":
                things += [
                    annotation(ord(stem), c, [x, y, 20, 24], area=480)
                    for c, (x, y) in zip((7, 3), corners, strict=True)
                ]
        if split == "train":
            things.append(annotation(ord("a"), 3, [0, 0, 40, 60], iscrowd=1))
        sizes = {f"{stem}.png": (ord(stem), 64, 80) for stem in stems}
        path = write_coco(folder / f"{split}.json", sizes, things, dict(zip(NAMES, (7, 3), strict=True)))
        sources.append(f"{path}:{images}")
    return sources[0], sources[1]


def make_toy_yolo(folder: Path) -> tuple[str, str]:
    """Writes the same images and objects in YOLO layout; returns the sources of `train` and `val`.

    The images of `train` are in a list, those of `val` in a folder. `f` has an empty label file, `h` has none.
    """
    for split, stems in (("train", SPLITS["train"]), ("val", SPLITS["test"])):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for stem in stems:
            pixels, corners = _draw(stem)
            Image.fromarray(pixels).save(folder / "images" / split / f"{stem}.png")
            rows = [f"{i} {(x + 10) / 80} {(y + 12) / 64} 0.25 0.375\n" for i, (x, y) in enumerate(corners)]
            if stem != "h":
                (folder / "labels" / split / f"{stem}.txt").write_text("" if stem == "f" else "".join(rows))
    (folder / "train.txt").write_text("".join(f"./images/train/{stem}.png\n" for stem in SPLITS["train"]))
    path = folder / "data.yaml"
    path.write_text(f"path: .\ntrain: train.txt\nval: images/val\nnc: 2\nnames: [{', '.join(NAMES)}]\n")
    return f"{path}:train", f"{path}:val"


def edit_xml(data: Path, old: str, new: str, stem: str = "a") -> Path:
    """Replaces a text, which must be present, in the annotations of an image; returns the path of the file."""
    path = data / "Annotations" / f"{stem}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def write_mat_file(path: Path, stems: str) -> Path:
    """Writes two proposals for each image in the original format: [y1, x1, y2, x2], 1-based, end inclusive."""
    boxes, images = (np.empty((1, len(stems)), dtype=object) for _ in range(2))
    for i, stem in enumerate(stems):
        boxes[0, i] = np.array([[1.0, 1.0, 30.0, 40.0], [5.0 + i, 11.0, 28.0, 60.0]])
        images[0, i] = stem
    scipy.io.savemat(path, {"boxes": boxes, "images": images})
    return path


def _make_image(folder: Path, stem: str) -> None:
    pixels, corners = _draw(stem)
    text = "<annotation><size><width>80</width><height>64</height><depth>3</depth></size>\n"
    for name, (x, y) in zip(NAMES, corners, strict=True):
        text += OBJECT.format(name, x + 1, y + 1, x + 20, y + 24, 0)
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{stem}.png")
    (folder / "Annotations" / f"{stem}.xml").write_text(text + "</annotation>\n")


def _draw(stem: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns pixels `[64, 80, 3]` and the corner of the rectangle of each of `NAMES`, which is 20 wide and 24 high."""
    rng = np.random.default_rng(sum(map(ord, stem)))
    pixels = rng.integers(90, 140, (64, 80, 3))
    corners = []
    for i, name in enumerate(NAMES):
        x, y = 4 + 40 * i + int(rng.integers(0, 8)), int(rng.integers(4, 30))
        pixels[y : y + 24, x : x + 20] = COLOURS[name]
        corners.append((x, y))
    return pixels.astype(np.uint8), corners


def training(
    data: Path, *, steps: int = 2, images: int = 2, test: str | None = "test", recipe: str = "demo-ohem"
) -> list[object]:
    """Returns options of `ohem train RUN` for a few steps on the toy data."""
    return training_on(f"{data}:train", f"{data}:{test}" if test else None, steps=steps, images=images, recipe=recipe)


def training_on(
    train: str, test: str | None, *, steps: int = 2, images: int = 2, recipe: str = "demo-ohem"
) -> list[object]:
    """Returns the same options for the given sources."""
    tested = ["--data.test", test] if test else []
    return [
        *["--recipe", recipe, "--data.train", train, *tested, "--data.short", 64, "--data.long", 80],
        *["--solver.steps", steps, "--solver.images", images, "--proposals.jobs", 1, "--run.accelerator", "cpu"],
    ]
