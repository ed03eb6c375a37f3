"""The progress of a training on standard error."""

import sys
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ohem.io.console import make_console
from ohem.io.progress import LineClock


class ProgressBar:
    """Progress of a training: loss, learning rate, images per second and time left.

    Where standard error is no terminal, it prints lines instead of a bar.

    Args:
        done: steps of an earlier part of the run.
        total: steps of the run.
        images: images of a step.
        enabled: False prints nothing.
    """

    def __init__(self, done: int, total: int, images: int, enabled: bool) -> None:
        self.images, self.total = images, total
        self.console, self.enabled = make_console(stderr=True), enabled
        self.plain = enabled and not sys.stderr.isatty()
        self.first, self.clock = done, LineClock()
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
        rate = (step - self.first) * self.images / max(self.clock.seconds, 1e-9)
        numbers = f"loss {loss:.3f}  lr {lr:.2g}  {rate:.2f} images/s"
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.plain and (step == self.first + 1 or self.clock.is_due() or step == self.total):
            left = (self.total - step) * self.images / max(rate, 1e-9)
            self.console.print(f"step {step}/{self.total}  {numbers}  {left / 60:.1f} min left", highlight=False)

    def report(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.enabled:
            self.console.print(text, highlight=False)
