"""Processes: a signal ends a command with one sentence, a child ends with its parent, and waiting threads sleep."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

TYPE_CHECKING = False  # few modules are imported above, since no signal is handled before
if TYPE_CHECKING:
    from typing import Any

PARENT = "OHEM_PARENT"
"""Environment variable: id of the parent process; the child ends when the parent ends."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""Time in which a training writes its checkpoint."""


def end_with_parent() -> None:
    """Ends this process some seconds after the parent that `OHEM_PARENT` names; does nothing without that variable.

    It sends SIGTERM first, so that a training writes its checkpoint, and exits after `GRACE_SECONDS`.
    """
    parent = os.environ.pop(PARENT, "")  # child processes of this one have another parent
    if parent.isdigit():
        import threading

        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def share_cores_while_waiting() -> None:
    """Makes threads of torch that wait sleep soon, if torch is not imported yet and the user has not decided.

    By default a thread waits in a loop for milliseconds. Where other programs use the cores too, such as selective
    search, it takes them from the thread that it waits for, and a training can take a hundred times as long.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_SECONDS = 0.01


class Stopped(Exception):
    """A signal stopped the training; its checkpoint is written."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; repeat the command to resume")
        self.signum = signum


class Interrupted(SystemExit):
    """A signal ended a command; temporary files are removed."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of ending the process; a second signal of a kind acts as usual."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def collect(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, previous[signal.Signals(signum)])

    for number in previous:
        signal.signal(number, collect)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_interruptible(load: Callable[[], Callable[[], None]]) -> None:
    """Runs the command line that `load` imports; SIGTERM and SIGINT end it with one sentence and 128 + their number.

    Before a command begins and after it is done, a signal ends the process at once. In between it raises `Interrupted`,
    so that temporary files are removed. An exception during an import may abort the process, since C++ code may run the
    import: the signal waits for its end, or ends the process at once where the command line itself imports.
    """
    _handle_by(_exit_now)
    run = load()
    sys.unraisablehook = _send_again
    try:
        _handle_by(partial(_interrupt, run.__code__.co_filename))
        run()
    except Interrupted as stop:
        _handle_by(_exit_now)
        _say_stopped(stop.signum)
        raise
    finally:
        _handle_by(_exit_now)


def _handle_by(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell starts background jobs so
            signal.signal(number, handler)


def _exit_now(signum: int, frame: FrameType | None) -> None:
    with suppress(Exception):
        sys.stdout.flush()
    _say_stopped(signum)
    os._exit(128 + signum)


def _interrupt(command_line: str, signum: int, frame: FrameType | None) -> None:
    importer = _importer(frame)
    if importer is None:
        raise Interrupted(signum)
    if importer.f_code.co_filename == command_line:
        _exit_now(signum, frame)
    _send_soon(signum)


def _importer(frame: FrameType | None) -> FrameType | None:
    """Returns the outermost frame that waits for an import; None if none does."""
    importer = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            importer = frame.f_back
        frame = frame.f_back
    return importer


def _send_soon(signum: int) -> None:
    import threading

    timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signum))
    timer.daemon = True
    timer.start()


def _say_stopped(signum: int) -> None:
    with suppress(OSError):
        os.write(2, f"ohem: stopped by {signal.Signals(signum).name}\n".encode())


def _send_again(unraisable: "Any") -> None:
    """Sends a signal again that arrived in a destructor or a callback, where Python drops the exception."""
    if isinstance(unraisable.exc_value, Interrupted):
        _send_soon(unraisable.exc_value.signum)
    else:
        sys.__unraisablehook__(unraisable)
