"""Selective search on many images by processes of joblib, which always end with the caller.

The workers import this module, so that it must not import torch (690 MB a process instead of 60-90).
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from joblib.parallel import BACKENDS, get_active_backend
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.images.read import read_rgb
from ohem.proposals.selective_search import Mode, opencv, selective_search

WATCH_SECONDS = 0.5


@contextmanager
def results_of(
    todo: Mapping[str, Path], mode: Mode, seed: int, jobs: int
) -> Iterator[Iterable[tuple[str, NDArray[np.float32]]]]:
    """Yields (id, boxes) as they are finished, in any order. An error or a signal ends the workers."""
    with _sigterm_raises():
        results = Parallel(n_jobs=jobs, return_as="generator_unordered", **_for_processes())(
            delayed(propose)(image_id, image, mode, seed) for image_id, image in todo.items()
        )
        try:
            yield results
        except BrokenProcessPool as error:
            raise InputError(
                "a process of selective search was killed, probably because there is not enough memory: "
                "give fewer --jobs (--proposals.jobs), and repeat the command to resume"
            ) from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of joblib, about tasks that are dropped
                results.close()


def _for_processes() -> dict[str, Any]:
    """Returns options for joblib's own processes, which are children; workers of dask may be on other machines."""
    backend, _ = get_active_backend()
    if isinstance(backend, BACKENDS["loky"]):
        return {"initializer": follow_parent, "initargs": (os.getpid(),)}
    return {}


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, so that parts are kept and workers end, unless the caller handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal ends the process at once
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def follow_parent(parent: int) -> None:
    """Ends this worker soon after its parent process, with the id `parent`, has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    threading.Thread(target=_exit_without, args=(parent,), daemon=True).start()


def _exit_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def propose(image_id: str, path: Path, mode: Mode, seed: int) -> tuple[str, NDArray[np.float32]]:
    """Returns the id and the proposals, float32 (P, 4), of one image; raises `InputError` where it cannot be read."""
    opencv().setNumThreads(1)  # one process for each core: more threads would slow it down
    return image_id, selective_search(read_bgr(path), mode, seed)


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """Reads the pixels of training as uint8 (H, W, 3), upright, BGR; raises `InputError` as `read_rgb` does."""
    return np.ascontiguousarray(read_rgb(path)[..., ::-1])
