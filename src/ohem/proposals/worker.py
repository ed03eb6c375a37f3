"""What each worker process of `generate` runs: one image file in, its boxes out. Must not import torch."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ohem.images.read import read_rgb
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
    """Reads the pixels that training sees as uint8 (H, W, 3), upright, BGR. Raises InputError as `read_rgb` does."""
    return np.ascontiguousarray(read_rgb(path)[..., ::-1])
