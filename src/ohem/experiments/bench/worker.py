"""A process that does one implementation's steps when it is told to, and says how long each took and what it needed.

Imports nothing heavy: what is in memory besides the implementation would count as its own.
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

from ohem.errors import InputError
from ohem.experiments.bench.memory import Memory, memory


class Workload(Protocol):
    """Steps to be timed."""

    @property
    def device(self) -> str:
        """Where they run, as torch names it: "cpu", "cuda:0"."""

    def load(self, step: int) -> Mapping[str, Any]:
        """Makes ready what `step` (0, 1, ...) needs, off the clock; what it will be shown, for JSON."""

    def run(self) -> object:
        """The step that was made ready last, on the clock."""


# Made in the worker; what is left when it is closed.
Make = Callable[[], AbstractContextManager[Workload]]


@dataclass(frozen=True)
class Built:
    """Tells that the implementation stands, before its first step."""

    memory: Memory
    threads: int | None
    device: str


@dataclass(frozen=True)
class Step:
    """Tells of one step."""

    shown: Mapping[str, Any]
    seconds: float
    cpu_seconds: float
    memory: Memory


@dataclass(frozen=True)
class Failed:
    """Tells why there is no more to come."""

    sentence: str
    out_of_memory: bool = False


def serve(connection: Connection) -> None:
    """Takes a `Make` and then the numbers of steps; answers `Built`, then a `Step` each, or `Failed`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends its workers
    Thread(target=_leave_with_parent, daemon=True).start()
    with suppress(OSError):
        # Should memory run out, this process is to be ended, not somebody's training.
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
    shown = workload.load(step)
    _synchronise(workload.device)
    started, cpu_started = time.perf_counter(), time.process_time()
    workload.run()
    _synchronise(workload.device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return Step(shown, seconds, cpu_seconds, memory(workload.device))


def _leave_with_parent() -> None:
    """However the parent ended, even by SIGKILL in the middle of a step of ours."""
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
        words in str(error).lower() for words in ("out of memory", "not enough memory", "allocate memory")
    )
