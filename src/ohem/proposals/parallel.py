"""Selective search over many images by the processes of joblib, none of which is left behind, whatever happens."""

import os
import signal
import threading
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
from ohem.proposals.selective_search import Mode
from ohem.proposals.worker import follow_parent, propose


@contextmanager
def results_of(
    todo: Mapping[str, Path], mode: Mode, seed: int, jobs: int
) -> Iterator[Iterable[tuple[str, NDArray[np.float32]]]]:
    """(id, boxes) as they are finished, in any order. Whatever ends this early, signals too, ends the workers."""
    with _sigterm_raises():
        results = Parallel(n_jobs=jobs, return_as="generator_unordered", **_for_processes())(
            delayed(propose)(image_id, image, mode, seed) for image_id, image in todo.items()
        )
        try:
            yield results
        except BrokenProcessPool as error:
            raise InputError(
                "a process of selective search was ended from outside, as it is where memory runs out: "
                "give fewer --jobs (--proposals.jobs), and the same line goes on from there"
            ) from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib's, of tasks that are given up
                results.close()


def _for_processes() -> dict[str, Any]:
    """Options of joblib's own processes, children of this one; workers of dask may be on other machines."""
    backend, _ = get_active_backend()
    if isinstance(backend, BACKENDS["loky"]):
        return {"initializer": follow_parent, "initargs": (os.getpid(),)}
    return {}


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that parts are kept and workers end, unless the caller handles it already."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
