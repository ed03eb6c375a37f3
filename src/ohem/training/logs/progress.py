"""What a training prints: its progress on standard error, and the next commands on standard output."""

import shlex
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ohem.io.progress import Bar
from ohem.training import checkpoint, snapshots
from ohem.training.logs.loggers import TENSORBOARD
from ohem.training.logs.metrics_log import NAME as METRICS


class ProgressBar(Bar):
    """Progress of a training: loss, learning rate, images per second and time left.

    Args:
        done: steps of an earlier part of the run.
        total: steps of the run.
        images: images of a step.
        enabled: False prints nothing.
    """

    def __init__(self, done: int, total: int, images: int, enabled: bool) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        super().__init__(*columns, TextColumn("{task.fields[numbers]}"), enabled=enabled)
        self.first, self.images, self.total, self.enabled = done, images, total, enabled
        self.task = self.bar.add_task("training", total=total, completed=done, numbers="")

    def update(self, step: int, loss: float, lr: float) -> None:
        """Shows the numbers after `step` steps in all."""
        rate = (step - self.first) * self.images / max(self.clock.seconds, 1e-9)
        numbers = f"loss {loss:.3f}  lr {lr:.2g}  {rate:.2f} images/s"
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.plain and (step == self.first + 1 or self.clock.is_due() or step == self.total):
            left = (self.total - step) * self.images / max(rate, 1e-9)
            self.print(f"step {step}/{self.total}  {numbers}  {left / 60:.1f} min left")

    def report(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.enabled:
            self.print(text)


def print_next_steps(run: Path) -> None:
    """Prints what the training of `run` wrote, and the commands that use it."""
    kept = len(snapshots.list_snapshots(run))
    more = f", {kept} snapshots in {run / snapshots.FOLDER}" if kept else ""
    print(f"wrote {run / checkpoint.NAME} and {run / METRICS}{more}")
    folder = shlex.quote(str(run))
    print(f"next: ohem eval {folder}")
    print(f"      ohem detect {folder} IMAGE --out FOLDER")
    if (run / TENSORBOARD).exists():
        print(f"      tensorboard --logdir {folder}")
