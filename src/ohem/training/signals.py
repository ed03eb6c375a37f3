"""SIGTERM and SIGINT: they end a run after the step that they find it in, and any other command in one line."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

TYPE_CHECKING = False  # the modules imported above are few, since no signal is handled before they are
if TYPE_CHECKING:
    from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_SECONDS = 0.01


class Stopped(Exception):
    """Training was stopped by a signal, and its checkpoint is written."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; the same line goes on from there"
        )
        self.signum = signum


class Interrupted(SystemExit):
    """A signal ended a command; temporary files are removed as it passes."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in place of dying; a second one of the kind acts as usual."""
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
    """Runs the command line that `load` imports; SIGTERM and SIGINT end it in one line and with 128 + their number.

    Before a command begins, and when it is done, a signal ends the process at once; in between it raises `Interrupted`,
    so that temporary files are removed. An exception in an import may abort the process, since C++ code may run it: the
    signal waits until the import is done, or ends the process at once where the command line itself imports.
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
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell starts what is to run in the background
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
    """The outermost frame that waits for an import; None if none does."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            found = frame.f_back
        frame = frame.f_back
    return found


def _send_soon(signum: int) -> None:
    import threading

    timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signum))
    timer.daemon = True
    timer.start()


def _say_stopped(signum: int) -> None:
    with suppress(OSError):
        os.write(2, f"ohem: stopped by {signal.Signals(signum).name}\n".encode())


def _send_again(unraisable: "Any") -> None:
    """Sends a signal once more that came in a destructor or a callback, where Python drops the exception."""
    if isinstance(unraisable.exc_value, Interrupted):
        _send_soon(unraisable.exc_value.signum)
    else:
        sys.__unraisablehook__(unraisable)
