"""The data set of `ohem demo`: handwritten digits on crops of two photographs, both from scikit-learn.

Every scene has a few digits to detect, and as many distractors: mirrored, upside-down and halved digits, which are not
annotated. Distractors are rare among the background, overlap no object and resemble objects. A random sample of
background RoIs misses them; online hard example mining chooses them. Do not train with horizontal flips, which would
turn objects into distractors. The folder has the VOC layout.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.io.files import remove_leftovers
from ohem.io.json_files import write_json
from ohem.io.progress import tracked

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARAMETERS = "scenes.json"
FORMAT = 1  # increase it when the same parameters make other scenes

# Digits that are a distractor of each kind. Shapes that are still a digit are left out: 0, 1 and 8 mirrored, 2 and 5,
# which resemble each other, 6 and 9 turned, the lower half of an 8 (a 0), of a 4 (a 7) or of a 9 (a 1), and so on.
MIRRORED = (3, 4, 6, 7, 9)
TURNED = (3, 4, 7)
UPPER_HALVES = (0, 2, 3, 4, 5, 7)
LOWER_HALVES = (0, 2, 3, 5)

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Source:
    """Material of the scenes of one split: photographs uint8 [H, W, 3], digits [10][n, 8, 8] in 0..1."""

    photographs: list[Bytes]
    digits: list[Array]


def make_scenes(
    folder: Path,
    train: int = 160,
    test: int = 80,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    *,
    progress: bool = False,
) -> None:
    """Writes a data set in VOC layout with the splits `trainval` and `test`.

    A scene depends only on size, seed, split and number. The two splits share no digit and no part of a photograph. An
    existing folder with the same parameters is not changed. Nothing is deleted, and the folder appears when it is
    complete.

    Args:
        folder: the new folder.
        train: number of scenes of the split `trainval`.
        test: number of scenes of the split `test`.
        size: (height, width) in pixels.
        seed: seed of the scenes.
        progress: whether to print the progress.

    Raises:
        InputError: scikit-learn is missing, a number is out of range, or the folder has other content.
    """
    if train < 1 or test < 1 or min(size) < 160 or seed < 0:
        raise InputError(
            f"{folder}: scenes need train >= 1, test >= 1, a size of at least 160 x 160 pixels and seed >= 0, "
            f"but train is {train}, test {test}, size {size[0]} x {size[1]} and seed {seed}"
        )
    parameters = {"format": FORMAT, "train": train, "test": test, "size": list(size), "seed": seed}
    counts = {"trainval": train, "test": test}
    if _exists(folder, parameters, counts):
        return
    sources = _sources()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, escape(folder.name))
    made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _write_data(made, sources, size, seed, counts, progress)
        write_json(made / PARAMETERS, parameters)
        try:
            made.rename(folder)
        except OSError:  # another process was faster, or put something else there
            if not _exists(folder, parameters, counts):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def draw_digits(count: int, side: int = 80, seed: int = 0) -> tuple[Bytes, Array, NDArray[np.int64]]:
    """Draws single digits of the material of the split `trainval`, to pre-train a network; none is a distractor.

    Args:
        count: number of digits.
        side: height and width of the images in pixels; digits that are too large for it are left out.
        seed: seed of the digits, which are others than those of scenes with the same seed.

    Returns:
        Images (count, side, side, 3) uint8, boxes (count, 4) float32 [x1, y1, x2, y2) in pixels, and classes (count,)
        from 0, as in `CLASSES`.
    """
    rng = np.random.default_rng((seed, 2))  # 0 and 1 are the splits of the scenes
    source = _sources()[0]
    images, boxes = np.empty((count, side, side, 3), np.uint8), np.empty((count, 4), np.float32)
    labels: list[int] = []
    while (done := len(labels)) < count:
        if done % 8 == 0:  # a background takes longer than a digit
            background = _background(source.photographs, (3 * side, 4 * side), rng)
        label = int(rng.integers(len(CLASSES)))
        alpha = _render(source.digits[label][rng.integers(len(source.digits[label]))], rng)
        if max(alpha.shape) > side - 10:
            continue
        y, x = rng.integers(2 * side), rng.integers(3 * side)
        image = background[y : y + side, x : x + side].copy()
        box = _find_room(alpha.shape, (side, side), [], rng)
        assert box is not None
        _paste(image, alpha, box, rng)
        images[done], boxes[done] = (image * 255).round(), box
        labels.append(label)
    return images, boxes, np.array(labels, np.int64)


def _write_data(
    folder: Path,
    sources: tuple[_Source, _Source],
    size: tuple[int, int],
    seed: int,
    counts: dict[str, int],
    progress: bool,
) -> None:
    """Writes images, annotations and splits of VOC layout into the new `folder`."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number, (split, count) in enumerate(counts.items()):
        scenes = tracked(_ids(split, count), f"making scenes, {split}", enabled=progress)
        for index, scene in enumerate(scenes):
            rng = np.random.default_rng((seed, number, index))
            _write_scene(folder, scene, *_draw_scene(sources[number], size, rng))
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{scene}\n" for scene in _ids(split, count)))


def _ids(split: str, count: int) -> list[str]:
    return [f"{split}_{index:05d}" for index in range(count)]


def _exists(folder: Path, parameters: dict[str, Any], counts: dict[str, int]) -> bool:
    """Returns whether the folder has these scenes; raises `InputError` if it has other content."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        existing = json.loads((folder / PARAMETERS).read_text())
    except (OSError, ValueError):
        raise InputError(
            f"{folder}: this is not a folder of generated scenes (it has no readable {PARAMETERS}): name another"
        ) from None
    if existing != parameters:
        raise InputError(
            f"{folder / PARAMETERS}: the scenes were made with {existing}, not {parameters}: "
            "delete the folder or name another"
        )
    for scene in (scene for split, count in counts.items() for scene in _ids(split, count)):
        for path in (folder / f"JPEGImages/{scene}.jpg", folder / f"Annotations/{scene}.xml"):
            if not path.is_file():
                raise InputError(
                    f"{path}: this file of the generated scenes is missing: delete the folder to remake it"
                )
    return True


def _sources() -> tuple[_Source, _Source]:
    """Returns the material of both splits: two thirds of the digits and the lower half of photographs, and the rest."""
    datasets = import_extra("sklearn.datasets", "making the generated scenes")
    digits = datasets.load_digits()
    images = np.asarray(digits.images / 16, np.float32)
    train, test = _Source([], []), _Source([], [])
    for label in range(len(CLASSES)):
        samples: Array = images[digits.target == label]
        cut = 2 * len(samples) // 3  # in order, since neighbours are often by the same writer
        train.digits.append(samples[:cut])
        test.digits.append(samples[cut:])
    for photograph in datasets.load_sample_images().images:
        middle = len(photograph) // 2
        train.photographs.append(photograph[middle:])
        test.photographs.append(photograph[:middle])
    return train, test


def _draw_scene(source: _Source, size: tuple[int, int], rng: Generator) -> tuple[Array, list[tuple[str, Box]]]:
    """Draws an image [H, W, 3] in 0..1; returns it and (class, box) of every object, [x1, y1, x2, y2) in pixels."""
    image = _background(source.photographs, size, rng)
    objects: list[tuple[str, Box]] = []
    taken: list[Box] = []
    for name, glyph in _glyphs(source.digits, rng):
        alpha = _render(glyph, rng)
        box = _find_room(alpha.shape, size, taken, rng)
        if box is None:
            continue
        _paste(image, alpha, box, rng)
        taken.append(box)
        if name is not None:
            objects.append((name, box))
    return image, objects


def _background(photographs: list[Bytes], size: tuple[int, int], rng: Generator) -> Array:
    """Returns a random crop of a photograph, enlarged to `size`, blurred, faded, tinted, and perhaps flipped."""
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    scale = rng.uniform(0.5, 1.0) * min(height / size[0], width / size[1])
    h, w = int(scale * size[0]), int(scale * size[1])
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    crop = Image.fromarray(photograph[y : y + h, x : x + w])
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enlarged = crop.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    # Blur and fading decide the number of proposals: these give about 70 background RoIs for each object.
    blurred = np.asarray(enlarged.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 1.5)))) / 255
    mean = blurred.mean((0, 1))
    faded = mean + rng.uniform(0.5, 0.8) * (blurred - mean)
    tinted = faded * rng.uniform(0.7, 1.1) * rng.uniform(0.9, 1.1, 3)
    return np.asarray(tinted.clip(0, 1), np.float32)


def _glyphs(digits: list[Array], rng: Generator) -> Iterator[tuple[str | None, Array]]:
    """Yields 4 to 7 digits with their class names, then 4 to 7 distractors with None, as 8 x 8 glyphs in 0..1."""

    def sample(labels: tuple[int, ...]) -> tuple[int, Array]:
        label = labels[rng.integers(len(labels))]
        return label, digits[label][rng.integers(len(digits[label]))]

    for _ in range(rng.integers(4, 8)):
        label, glyph = sample(tuple(range(len(CLASSES))))
        yield CLASSES[label], glyph
    for _ in range(rng.integers(4, 8)):
        match rng.integers(4):
            case 0:
                yield None, sample(MIRRORED)[1][:, ::-1]
            case 1:
                yield None, sample(TURNED)[1][::-1, ::-1]
            case 2:
                yield None, sample(UPPER_HALVES)[1][:4]
            case _:
                yield None, sample(LOWER_HALVES)[1][4:]


def _render(glyph: Array, rng: Generator) -> Array:
    """Draws a glyph 28 to 72 pixels high (half a glyph: half of that), slightly rotated and sheared; [h, w] opacity."""
    pixel = np.exp(rng.uniform(np.log(28), np.log(72))) / 8  # the eight rows of a glyph fill its height
    angle, shear, stretch = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), rng.uniform(0.85, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_glyph = turn @ np.array([[1 / stretch, shear], [0, 1]]) / pixel
    padded = np.pad(glyph, 3)  # keeps the smooth edge of the ink
    side = int(16 * pixel)
    centre = np.array(padded.shape[::-1]) / 2 - to_glyph @ np.array([side / 2, side / 2])
    coefficients = (*to_glyph[0], centre[0], *to_glyph[1], centre[1])
    smooth = Image.fromarray(padded.astype(np.float32)).transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    alpha = np.clip((np.asarray(smooth) - 0.4) / 0.2, 0, 1).astype(np.float32)  # firm strokes instead of a blur
    rows, columns = (np.flatnonzero((alpha > 0.5).any(axis)) for axis in (1, 0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _find_room(shape: tuple[int, ...], size: tuple[int, int], taken: list[Box], rng: Generator) -> Box | None:
    """Returns a random place at least 4 pixels from other shapes; None after 50 tries."""
    h, w = shape
    gap = 4
    for _ in range(50):
        x, y = int(rng.integers(gap, size[1] - w - gap)), int(rng.integers(gap, size[0] - h - gap))
        if all(x >= x2 + gap or x1 >= x + w + gap or y >= y2 + gap or y1 >= y + h + gap for x1, y1, x2, y2 in taken):
            return x, y, x + w, y + h
    return None


def _paste(image: Array, alpha: Array, box: Box, rng: Generator) -> None:
    """Draws ink of a random colour, clearly lighter or darker than the background, into the image."""
    x1, y1, x2, y2 = box
    behind = image[y1:y2, x1:x2]
    grey = float(behind.mean())
    level = grey + rng.uniform(0.35, 0.6) * (1 if grey < 0.5 else -1)
    ink = np.clip(level + rng.uniform(-0.25, 0.25, 3), 0, 1)
    opacity = alpha[..., None] * rng.uniform(0.85, 1.0)
    image[y1:y2, x1:x2] = behind * (1 - opacity) + ink * opacity


def _write_scene(folder: Path, scene: str, image: Array, objects: list[tuple[str, Box]]) -> None:
    """Writes a JPEG file and its VOC annotation, whose boxes are 1-based and include their last pixel."""
    picture = Image.fromarray((image * 255).round().astype(np.uint8))
    picture.save(folder / f"JPEGImages/{scene}.jpg", quality=92)
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{scene}.jpg"
    extent = {"width": picture.width, "height": picture.height, "depth": 3}
    _add(root, "size", extent)
    for name, (x1, y1, x2, y2) in objects:
        element = _add(root, "object", {"name": name, "difficult": 0})
        _add(element, "bndbox", {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2})
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(folder / f"Annotations/{scene}.xml")


def _add(parent: ElementTree.Element, tag: str, fields: dict[str, Any]) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    for name, value in fields.items():
        ElementTree.SubElement(element, name).text = str(value)
    return element
