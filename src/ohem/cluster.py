"""Work on a Dask cluster, whose workers see the same folders as this process."""

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar

from ohem.errors import InputError
from ohem.extras import import_extra

T = TypeVar("T")
LOCAL = "local"
"""The address that starts a cluster on this machine."""
CONNECT_SECONDS = 10
GPU = "GPU"
"""Name of the resource of workers with GPUs, as `dask worker --resources "GPU=1"` gives it."""


@contextmanager
def executor_on(address: str, jobs: int = 1, *, gpus: bool = True) -> Iterator[Executor]:
    """Yields an executor whose tasks run on the workers of a Dask scheduler.

    A task whose worker is lost is done again by another one.

    Args:
        address: of the scheduler, such as tcp://10.0.0.1:8786; "local" starts workers on this machine.
        jobs: number of the workers of "local", one task each; -1: one for each core.
        gpus: whether a task takes a GPU, where workers have the resource "GPU".

    Raises:
        InputError: Dask is not installed, or there is no scheduler at `address`.
    """
    distributed = import_extra("distributed", "--cluster")
    with _client(distributed, address, jobs) as client:
        resources = {GPU: 1} if gpus and _has_gpus(client) else None
        executor = client.get_executor(pure=False, resources=resources)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)


def result_of(task: "Future[T]") -> T:
    """Returns the result of a task that has ended; raises `InputError` where no worker lived to its end."""
    try:
        return task.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        raise InputError(
            "several workers of --cluster were killed at the same task, probably because there is not enough memory: "
            "give them more, and repeat the command to resume"
        ) from error


def _has_gpus(client: Any) -> bool:
    try:
        info = client.scheduler_info(n_workers=-1)
    except TypeError:  # before 2025.4 it was all of them
        info = client.scheduler_info()
    return any(GPU in worker["resources"] for worker in info["workers"].values())


@contextmanager
def _client(distributed: Any, address: str, jobs: int) -> Iterator[Any]:
    if address == LOCAL:
        workers = jobs if jobs > 0 else os.cpu_count()
        with (
            distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--cluster {address}: no Dask scheduler answers there: start one with `dask scheduler`, or give `local`"
        ) from error
    with client:
        yield client
