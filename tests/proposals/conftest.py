"""Small images, for which selective search takes a few milliseconds."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def picture(seed: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Draws ten rectangles of random colour on noise: uint8 (H, W, 3), a different image for each seed."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (height, width, 3))
    for _ in range(10):
        y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
        image[y : y + rng.integers(5, 12), x : x + rng.integers(5, 12)] = rng.integers(0, 256, 3)
    return image.astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Writes six image files; returns id -> path, not in alphabetical order."""
    files = {name: tmp_path / f"{name}.png" for name in ["d", "a", "f", "b", "e", "c"]}
    for seed, file in enumerate(files.values()):
        Image.fromarray(picture(seed)).save(file)
    return files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Proposals" / "train.safetensors"
