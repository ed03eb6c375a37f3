"""Image files with an EXIF orientation, for any test that needs one."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_turned(stored: np.ndarray, path: Path, orientation: int) -> None:
    """Writes the pixels `stored`, uint8 `[H, W, 3]`, as they are, with an orientation by which viewers turn them."""
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **options)
