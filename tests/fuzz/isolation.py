"""Runs commands in their own processes, so that a crash, a hang or lack of memory is also a result."""

import importlib
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.commands import Command, Result

Run = Callable[[Command, Path], Result]
SECONDS = 60.0


class Died(Exception):
    """Reports a process that ended without a result."""


def here(command: Command, world: Path) -> Result:
    """Runs the command in this process."""
    return command(world)


def in_a_child(command: Command, world: Path) -> Result:
    """Runs the command in a fork of this process; raises Died where that crashes or hangs."""
    result: Result = _forked(lambda: command(world))
    return result


def modules_after(make: Callable[[], None]) -> None:
    """Calls `make` in a child and imports here what it imported: a fork after a backward pass could not train."""

    def names() -> list[str]:
        make()
        return list(sys.modules)

    for name in _forked(names):
        if name != "__main__" and name.split(".")[0] in ("ohem", "torch", "scipy", "sklearn", "matplotlib", "jinja2"):
            try:
                importlib.import_module(name)
            except ImportError:  # made at run time
                continue


def _forked(function: Callable[[], object]):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        answer, output = Path(folder) / "answer", Path(folder) / "output"
        child = os.fork()
        if not child:
            _child(function, answer, output)
        status = _wait(child)
        if answer.exists():
            return pickle.loads(answer.read_bytes())
        raise Died(f"the process ended with {status}\n{output.read_text(errors='replace')[-2000:]}")


def _child(function: Callable[[], object], answer: Path, output: Path) -> None:
    """Runs in the child, and never returns."""
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT)  # what libraries in C write
        os.dup2(file, 1)
        os.dup2(file, 2)
        written = pickle.dumps(function())
        answer.with_name("unfinished").write_bytes(written)
        answer.with_name("unfinished").rename(answer)
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _wait(child: int) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"status {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no result in {SECONDS:.0f} s"
