"""A worker process: runs the steps of one method on request, and reports the time and memory of each step.

Imports nothing large: it would be counted as memory of the method.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from ohem.bench.memory import Memory, available, memory
from ohem.errors import InputError


class Workload(Protocol):
    """Steps to measure."""

    @property
    def device(self) -> str:
        """Device of the steps, a name of torch: "cpu", "cuda:0"."""

    def load(self, step: int) -> Mapping[str, Any]:
        """Loads the mini-batch of `step` (0, 1, ...), which is not measured; returns its description for JSON."""

    def run(self) -> object:
        """Runs the step of the mini-batch that was loaded last, which is measured."""


# Makes the workload in the worker process, and cleans up after it.
Make = Callable[[], AbstractContextManager[Workload]]


@dataclass(frozen=True)
class Built:
    """The answer of a worker that has built its workload."""

    memory: Memory
    threads: int | None
    device: str


@dataclass(frozen=True)
class Step:
    """The answer of a worker that has run a step."""

    batch: Mapping[str, Any]
    seconds: float
    cpu_seconds: float
    memory: Memory
    available: int | None
    """Free memory of the device after the step, in bytes."""


@dataclass(frozen=True)
class Failed:
    """The last answer of a worker that failed."""

    sentence: str
    out_of_memory: bool = False


def serve(connection: Connection) -> None:
    """Receives a `Make` and numbers of steps until None; answers `Built`, then `Step` for each number, or `Failed`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    Thread(target=_exit_with_parent, daemon=True).start()
    with suppress(OSError):
        # If memory runs out, the system should end this process and not a training.
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        with connection.recv()() as workload:
            connection.send(Built(memory(workload.device), _threads(), _name(workload.device)))
            while (step := connection.recv()) is not None:
                connection.send(_step(workload, step))
    except (EOFError, BrokenPipeError):
        pass
    except InputError as error:
        connection.send(Failed(str(error)))
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        connection.send(Failed(str(error), out_of_memory=True))


def _step(workload: Workload, step: int) -> Step:
    batch = workload.load(step)
    _synchronise(workload.device)
    started, cpu_started = time.perf_counter(), time.process_time()
    workload.run()
    _synchronise(workload.device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return Step(batch, seconds, cpu_seconds, memory(workload.device), available(workload.device))


def _exit_with_parent() -> None:
    """Ends this process when its parent ends, even if the parent is killed in the middle of a step."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _synchronise(device: str) -> None:
    if device != "cpu":
        import torch

        torch.accelerator.synchronize(device)


def _threads() -> int | None:
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None


def _name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


def _is_out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("out of memory", "not enough memory", "allocate memory")
    )
