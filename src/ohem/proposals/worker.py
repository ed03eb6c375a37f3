"""What each worker process of `generate` runs: one image file in, its boxes out. Must not import torch."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ohem.errors import InputError
from ohem.proposals.selective_search import Mode, opencv, selective_search

WATCH_SECONDS = 0.5


def follow_parent(parent: int) -> None:
    """Ends this worker soon after the process with the id `parent` that started it, which may have been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent ends its workers
    threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def propose(image_id: str, path: Path, mode: Mode, seed: int) -> tuple[str, NDArray[np.float32]]:
    """The id and the proposals, float32 (P, 4), of one image. Raises InputError where it cannot be read."""
    opencv().setNumThreads(1)  # one process per CPU: more threads only get in each other's way
    return image_id, selective_search(read_bgr(path), mode, seed)


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """An image file as uint8 (H, W, 3) BGR, whatever its kind. Raises InputError where it is missing or damaged.

    The pixels stay as they are stored, whatever EXIF says of their orientation: annotations refer to those.
    """
    remedy = "replace the file or take its id off the split"
    try:
        with Image.open(path) as image:
            image.load()  # OpenCV fills what a truncated file lacks with grey and does not tell
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: the image cannot be read ({error}): {remedy}") from error
    cv2 = opencv()
    pixels: NDArray[np.uint8] | None = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise InputError(f"{path}: OpenCV cannot read this kind of image: {remedy}")
    return pixels
