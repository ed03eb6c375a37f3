"""Progress on standard error: a bar on a terminal; elsewhere, as in a log file, lines."""

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from typing_extensions import Self  # `typing` has it from Python 3.11 on; torch requires this package

from ohem.io.console import escape, make_console

OFTEN, RARELY, OFTEN_UNTIL = 4.0, 30.0, 300.0


class LineClock:
    """Times the lines of a log file: every 4 seconds in the first 5 minutes, then every 30, so that it stays short."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def is_due(self) -> bool:
        """Returns whether a line is due; if so, the next one is due later."""
        now = time.monotonic()
        due = now - self.last >= (OFTEN if now - self.started < OFTEN_UNTIL else RARELY)
        if due:
            self.last = now
        return due


class Bar:
    """A progress bar, and what lines need in its place where standard error is no terminal (`plain`).

    Args:
        columns: those of the bar, before the time left.
        enabled: False prints nothing.
    """

    def __init__(self, *columns: ProgressColumn, enabled: bool) -> None:
        self.console = make_console(stderr=True)
        self.plain = enabled and not sys.stderr.isatty()
        hidden = not enabled or self.plain
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=hidden)
        self.clock = LineClock()

    def __enter__(self) -> Self:
        if not self.bar.disable:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.bar.disable:  # rich before 14.3 would print an empty line
            self.bar.stop()

    def print(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(text, highlight=False)


class Counter(Bar):
    """Progress over a number of images, or of what `unit` names.

    Args:
        description: what is done.
        total: number of images.
        done: number of images that were done before.
        unit: what is counted, in the plural.
        enabled: False prints nothing.
    """

    def __init__(
        self, description: str, total: int, done: int = 0, *, unit: str = "images", enabled: bool = True
    ) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        super().__init__(*columns, enabled=enabled)
        self.description, self.total, self.done, self.first = description, total, done, done
        self.unit = unit
        self.task = self.bar.add_task(escape(description), total=total, completed=done, rate="")

    def advance(self) -> None:
        """Shows that one more is done."""
        self.done += 1
        rate = f"{(self.done - self.first) / max(self.clock.seconds, 1e-9):.2f} {self.unit}/s"
        self.bar.update(self.task, completed=self.done, rate=rate)
        if self.plain and (self.clock.is_due() or self.done == self.total):
            self.print(f"{self.description}: {self.done} of {self.total}, {rate}")


T_co = TypeVar("T_co", covariant=True)


class _Indexed(Protocol[T_co]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> T_co: ...


def tracked(items: _Indexed[T_co], description: str, *, unit: str = "images", enabled: bool = True) -> Iterator[T_co]:
    """Yields the items, which are one for each image or other `unit`, and shows the progress."""
    with Counter(description, len(items), unit=unit, enabled=enabled) as counter:
        for i in range(len(items)):
            yield items[i]
            counter.advance()
