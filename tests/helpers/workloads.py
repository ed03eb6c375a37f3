"""Workloads that compute nothing and import no torch, so that worker processes start at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ohem.errors import InputError


class Workload:
    """Appends `NAME:STEP:PID` to a file at each step, and `NAME:left` at the end."""

    device = "cpu"

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log

    def load(self, step: int) -> dict[str, Any]:
        self.step = step
        return {"step": step, "pid": os.getpid()}

    def run(self) -> None:
        self.note(f"{self.step}")

    def note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{self.name}:{text}\n")


@contextmanager
def noting(name: str, log: Path) -> Iterator[Workload]:
    workload = Workload(name, log)
    yield workload
    workload.note("left")


class _Doing(Workload):
    def __init__(self, what: str, log: Path) -> None:
        super().__init__(what, log)

    def run(self) -> None:
        if self.step == 0:
            return
        match self.name:
            case "bad input":
                raise InputError("x.jpg is damaged: replace it")
            case "memory":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
            case "bug":
                raise ZeroDivisionError("of our own")
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                self.note(str(os.getpid()))
                time.sleep(600)


@contextmanager
def doing(what: str, log: Path) -> Iterator[Workload]:
    """Returns a workload that ends its worker in its second step."""
    yield _Doing(what, log)


@contextmanager
def unbuilt() -> Iterator[Workload]:
    raise InputError("w.pth does not fit: name another")
    yield


class _Allocating(Workload):
    def run(self) -> None:
        bytearray(int(self.name))


@contextmanager
def allocating(size: int) -> Iterator[Workload]:
    """Returns a workload that needs `size` bytes during a step and frees them after it."""
    yield _Allocating(str(size), Path(os.devnull))
