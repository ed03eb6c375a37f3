"""What each worker process of `generate` runs: one image file in, its boxes out. Must not import torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ohem.images.read import read_rgb
from ohem.proposals.selective_search import Mode, opencv, selective_search


def propose(image_id: str, path: Path, mode: Mode, seed: int) -> tuple[str, NDArray[np.float32]]:
    """The id and the proposals, float32 (P, 4), of one image. Raises InputError where it cannot be read."""
    opencv().setNumThreads(1)  # one process per CPU: more threads only get in each other's way
    return image_id, selective_search(read_bgr(path), mode, seed)


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """Reads the pixels that training sees as uint8 (H, W, 3), upright, BGR. Raises InputError as `read_rgb` does."""
    return np.ascontiguousarray(read_rgb(path)[..., ::-1])
