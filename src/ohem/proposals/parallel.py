"""Proposals of many images by processes of joblib, which always end with the caller.

Threads do not speed up selective search: OpenCV orders the boxes by C's rand(), which the threads of a process share.
The workers import this module, so that it must not import torch (690 MB a process instead of 60-90).
"""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import BACKENDS, get_active_backend
from numpy.typing import NDArray

from ohem.cluster import executor_on, result_of
from ohem.errors import InputError
from ohem.images.read import read_rgb
from ohem.proposals.methods import Search, opencv

WATCH_SECONDS = 0.5
START_SECONDS = 1.0
BEGUN = 1000
"""Highest number of images that a cluster is given at a time."""
Task = Future[tuple[str, NDArray[np.float32]]]
_cluster: ContextVar[Executor | None] = ContextVar("cluster", default=None)


def check_jobs(jobs: int) -> None:
    """Raises `InputError` where `jobs` is no number of processes."""
    if jobs == 0:
        raise InputError("--jobs 0 does nothing: give 1 or more, or -1 for every core")


@contextmanager
def proposed_on(address: str, jobs: int) -> Iterator[None]:
    """Makes `results_of` use the workers of a Dask scheduler, as `executor_on` takes it, which see the same files."""
    with executor_on(address, jobs, gpus=False) as executor:
        token = _cluster.set(executor)
        try:
            yield
        finally:
            _cluster.reset(token)


@contextmanager
def results_of(
    todo: Mapping[str, Path], method: Search, jobs: int
) -> Iterator[Iterable[tuple[str, NDArray[np.float32]]]]:
    """Yields (id, boxes) as they are finished, in any order. An error or a signal ends the workers."""
    executor = _cluster.get()
    if executor is not None:
        with _sigterm_raises():
            yield _results_on(executor, [(name, path.absolute(), method) for name, path in todo.items()])
        return
    with _sigterm_raises(), _killed_worker_raises("--jobs (--proposals.jobs), and repeat the command to resume"):
        results = Parallel(n_jobs=jobs, return_as="generator_unordered", **_for_processes())(
            delayed(propose)(image_id, image, method) for image_id, image in todo.items()
        )
        try:
            yield results
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of joblib, about tasks that are dropped
                results.close()


def _results_on(
    executor: Executor, arguments: Iterable[tuple[str, Path, Search]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yields the results of `propose`; at most `BEGUN` tasks are on their way, so that few are lost by a signal."""
    begun: set[Task] = set()
    for given in arguments:
        begun.add(executor.submit(propose, *given))
        if len(begun) == BEGUN:
            done, begun = wait(begun, return_when=FIRST_COMPLETED)
            yield from map(result_of, done)
    yield from map(result_of, as_completed(begun))


@contextmanager
def proposals_in_order(images: Iterable[Path], method: Search, jobs: int) -> Iterator[Iterator[NDArray[np.float32]]]:
    """Yields the boxes of `images` in their order, an error in its place. An error or a signal ends the workers.

    At most two images for each of the `jobs` processes are begun and not yet used: joblib's generator would go on to
    the last image, however slow the caller is.
    """
    with _sigterm_raises(), _killed_worker_raises("--jobs"):
        pool = ProcessPoolExecutor(jobs, initializer=follow_parent, initargs=(os.getpid(),))
        begun: deque[Task] = deque()
        try:
            tasks = (pool.submit(propose, str(image), image, method) for image in images)
            yield _boxes_of(tasks, begun, 2 * jobs)
        finally:
            _wait_for_start(begun)
            pool.shutdown(kill_workers=True)


def _boxes_of(tasks: Iterable[Task], begun: deque[Task], most: int) -> Iterator[NDArray[np.float32]]:
    """Yields the boxes of `tasks`, of which at most `most` are in `begun` at a time."""
    for task in tasks:
        begun.append(task)
        if len(begun) == most:
            yield _first(begun)
    while begun:
        yield _first(begun)


def _first(begun: deque[Task]) -> NDArray[np.float32]:
    _, boxes = begun[0].result()
    begun.popleft()
    return boxes


def _wait_for_start(begun: Iterable[Task]) -> None:
    """Waits some milliseconds until no task is on its way to a process: joblib's pool must not be ended before."""
    deadline = time.monotonic() + START_SECONDS
    while not all(task.running() or task.done() for task in begun) and time.monotonic() < deadline:
        time.sleep(0.001)


@contextmanager
def _killed_worker_raises(remedy: str) -> Iterator[None]:
    """Makes `InputError` of the end of a worker, with fewer `remedy` as the remedy."""
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            "a process that makes proposals was killed, probably because there is not enough memory: "
            f"give fewer {remedy}"
        ) from error


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


def propose(image_id: str, path: Path, method: Search) -> tuple[str, NDArray[np.float32]]:
    """Returns the id and the proposals, float32 (P, 4), of one image; raises `InputError` where it cannot be read."""
    opencv().setNumThreads(1)  # one process for each core: more threads would slow it down
    return image_id, method(read_bgr(path))


def read_bgr(path: Path) -> NDArray[np.uint8]:
    """Reads the pixels of training as uint8 (H, W, 3), upright, BGR; raises `InputError` as `read_rgb` does."""
    return np.ascontiguousarray(read_rgb(path)[..., ::-1])
