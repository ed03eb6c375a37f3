"""Detections in pictures of the person's own: drawn, and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ohem.data.image import read_image
from ohem.data.loader import Picture, picture
from ohem.detection.draw import draw_detections
from ohem.errors import InputError
from ohem.files import replacing
from ohem.proposals.selective_search import selective_search
from ohem.training.build import sides_to_test
from ohem.training.config import ProposalConfig, Recipe, TestConfig
from ohem.training.evaluate import detect, load_detector

NAME = "detections.json"


def detect_files(run: Path, files: Sequence[Path], out: Path, score: float, test: TestConfig | None = None) -> None:
    """Detects in `files` with the newest checkpoint of `run`; writes pictures and detections.json into `out`.

    The JSON is a list with, per file, `image`, `boxes` ([x1, y1, x2, y2] in pixels), `labels` (names) and `scores`,
    best first; the pictures, named as the files, show those of at least `score`. `test` takes the place of what the
    recipe of the run says about testing.

    Raises:
        InputError: no file is given, one cannot be read, or two have the same name.
    """
    if not files:
        raise InputError("no picture is given: name the files behind the run")
    names = [f"{path.stem}.jpg" for path in files]
    twice = next((path for path, name in zip(files, names, strict=True) if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} shares its name with another picture: detect in them one folder at a time")
    images = [read_image(path) for path in files]
    model, recipe, _ = load_detector(run, test)
    out.mkdir(parents=True, exist_ok=True)
    pictures = [_picture(str(path), image, recipe) for path, image in zip(files, images, strict=True)]
    entries = []
    for name, path, image, found in zip(names, files, images, detect(model, pictures), strict=True):
        labels = [recipe.data.classes[i - 1] for i in found["labels"].tolist()]
        entries.append(
            {"image": str(path), "boxes": found["boxes"].tolist(), "labels": labels, "scores": found["scores"].tolist()}
        )
        save_picture(draw_found(image, found, recipe.data.classes, score), out / name)
        print(f"{out / name}: {int((found['scores'] >= score).sum())} objects")
    with replacing(out / NAME) as beside:
        beside.write_text(json.dumps(entries, indent=1) + "\n")


def draw_found(image: Tensor, found: dict[str, Tensor], classes: Sequence[str], score: float) -> Tensor:
    """`image` uint8 (3, H, W) with the detections of at least `score`."""
    shown = found["scores"] >= score
    names = [classes[i - 1] for i in found["labels"][shown].tolist()]
    return draw_detections(image, found["boxes"][shown], names, found["scores"][shown].tolist())


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes uint8 (3, H, W) as a JPEG file."""
    with replacing(path) as beside:
        to_pil_image(picture).save(beside, format="JPEG", quality=92)


def _picture(name: str, image: Tensor, recipe: Recipe) -> Picture:
    shorts, long = sides_to_test(recipe)
    return picture(name, image, _proposals(image, recipe.proposals), shorts=shorts, long=long)


def _proposals(image: Tensor, config: ProposalConfig) -> NDArray[np.float32]:
    """(P, 4) boxes in pixels of `image`."""
    if config.mode == "none":
        return np.zeros((0, 4), np.float32)
    bgr = image.flip(0).permute(1, 2, 0).contiguous().numpy()
    return selective_search(bgr, config.mode, config.seed)[: config.top]
