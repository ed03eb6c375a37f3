"""SIGTERM and SIGINT end a run after the step that they find it in, with its checkpoint written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """Training was stopped by a signal, and its checkpoint is written."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; the same line goes on from there"
        )
        self.signum = signum


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in place of dying; a second one of the kind acts as usual."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

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
