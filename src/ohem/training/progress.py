"""The progress of a training, and of other loops over images, on standard error."""

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from ohem.io.console import escape, make_console


class ProgressBar:
    """Progress of a training: loss, learning rate, images per second and time left.

    Where standard error is no terminal, it prints a line every `LINE_SECONDS` instead of a bar.

    Args:
        done: steps of an earlier part of the run.
        total: steps of the run.
        images: images of a step.
        enabled: False prints nothing.
    """

    LINE_SECONDS = 30.0

    def __init__(self, done: int, total: int, images: int, enabled: bool) -> None:
        self.images, self.total = images, total
        self.console, self.enabled = make_console(stderr=True), enabled
        self.plain = enabled and not sys.stderr.isatty()
        self.started, self.first, self.last_line = time.monotonic(), done, 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not enabled or self.plain,
        )
        self.task = self.bar.add_task("training", total=total, completed=done, numbers="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, loss: float, lr: float) -> None:
        """Shows the numbers after `step` steps in all."""
        now = time.monotonic()
        rate = (step - self.first) * self.images / max(now - self.started, 1e-9)
        numbers = f"loss {loss:.3f}  lr {lr:.2g}  {rate:.2f} images/s"
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.plain and (now - self.last_line > self.LINE_SECONDS or step == self.total):
            left = (self.total - step) * self.images / max(rate, 1e-9)
            self.console.print(f"step {step}/{self.total}  {numbers}  {left / 60:.1f} min left", highlight=False)
            self.last_line = now

    def report(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.enabled:
            self.console.print(text, highlight=False)


T_co = TypeVar("T_co", covariant=True)


class _Indexed(Protocol[T_co]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> T_co: ...


def tracked(items: _Indexed[T_co], description: str) -> Iterator[T_co]:
    """Yields the items and shows a progress bar."""
    iterator = (items[i] for i in range(len(items)))
    return iter(track(iterator, escape(description), len(items), console=make_console(stderr=True)))
