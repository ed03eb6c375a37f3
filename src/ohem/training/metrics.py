"""What a run tells while it trains: rows of metrics.csv, flushed as they come, and a progress bar."""

import csv
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from ohem.files import replacing

NAME = "metrics.csv"
COLUMNS = (
    "step", "lr", "loss", "loss_classifier", "loss_box_reg", "grad_norm",
    "rois", "chosen", "foreground", "far", "survivors", "loss_chosen", "loss_all", "nan", "seconds",
)  # fmt: skip


class MetricsLog:
    """RUN/metrics.csv: one row each `log_every` steps; rows behind the step that a run resumes from are dropped.

    COLUMNS come first, then whatever else is told: the losses of torchvision's detectors have names of their own. Of
    several processes, the numbers are those of the first.
    """

    def __init__(self, run: Path, resume_step: int) -> None:
        self.run = run
        self._begin([row for row in read_metrics(run) if int(row["step"]) <= resume_step], ())

    def write(self, row: Mapping[str, float]) -> None:
        """Appends `row`; what it lacks of the columns stays empty."""
        if not row.keys() <= set(self._writer.fieldnames):
            self._file.close()
            self._begin(read_metrics(self.run), row)
        self._writer.writerow({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()})
        self._file.flush()

    def _begin(self, rows: Sequence[Mapping[str, str]], more: Iterable[str]) -> None:
        """Writes `rows`, to go on behind them with the columns of these, and `more`."""
        columns = dict.fromkeys([*COLUMNS, *(rows[0] if rows else ()), *more])
        path = self.run / NAME
        with replacing(path) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, list(columns), restval="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Whole rows of RUN/metrics.csv; none where the file is absent. A last line cut short is left out."""
    path = run / NAME
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit()]


class Window:
    """Means of the numbers of some steps, each over the times it was told."""

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}
        self.last: dict[str, float] = {}

    def add(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.last = numbers or self.last

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


class ProgressBar:
    """Loss, learning rate, images a second and time left; on something that is no terminal, a line now and then."""

    LINE_SECONDS = 30.0

    def __init__(self, done: int, total: int, images: int, enabled: bool) -> None:
        self.images, self.total = images, total
        self.console, self.enabled = Console(stderr=True), enabled
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
        """After `step` steps in all."""
        now = time.monotonic()
        rate = (step - self.first) * self.images / max(now - self.started, 1e-9)
        numbers = f"loss {loss:.3f}  lr {lr:.2g}  {rate:.2f} images/s"
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.plain and (now - self.last_line > self.LINE_SECONDS or step == self.total):
            left = (self.total - step) * self.images / max(rate, 1e-9)
            self.console.print(f"step {step}/{self.total}  {numbers}  {left / 60:.1f} min left", highlight=False)
            self.last_line = now

    def tell(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.enabled:
            self.console.print(text, highlight=False)


T_co = TypeVar("T_co", covariant=True)


class _Indexed(Protocol[T_co]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> T_co: ...


def tracked(items: _Indexed[T_co], description: str) -> Iterator[T_co]:
    """The items, one after the other, behind a progress bar."""
    return iter(track((items[i] for i in range(len(items))), description, len(items), console=Console(stderr=True)))
