"""What a run tells while it trains: rows of metrics.csv, flushed as they come, and a progress bar."""

import csv
import io
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from ohem.console import escape, make_console
from ohem.errors import InputError
from ohem.files import describe_os_error, replacing
from ohem.training import checkpoint

NAME = "metrics.csv"
COLUMNS = (
    "step", "lr", "loss", "loss_classifier", "loss_box_reg", "grad_norm",
    "rois", "chosen", "foreground", "far", "survivors", "loss_chosen", "loss_all", "nan", "seconds",
)  # fmt: skip


_NUMBER = re.compile(r"-?(\d+(\.\d+)?(e[+-]\d+)?|inf|nan)|")


class MetricsLog:
    """RUN/metrics.csv: one row each `log_every` steps; rows behind the step that a run resumes from are dropped.

    COLUMNS come first, then whatever else is told: the losses of torchvision's detectors have names of their own. Of
    several processes, the numbers are those of the first.

    Args:
        run: folder of the run.
        resume_step: step that the run goes on from.
        text: of the file, as the checkpoint of that step holds it, which takes the place of the file; None where the
            checkpoint is of an older version: then the rows of the file are used.

    Raises:
        InputError: the rows to go on from are damaged.
    """

    def __init__(self, run: Path, resume_step: int, text: str | None = None) -> None:
        self.run = run
        rows = []
        if resume_step:  # a run that starts has no use for what is there
            rows = read_metrics(run) if text is None else parse_metrics(text, run / checkpoint.NAME)
        self._begin([row for row in rows if int(row["step"]) <= resume_step], ())

    def write(self, row: Mapping[str, float]) -> None:
        """Appends `row`; what it lacks of the columns stays empty.

        Raises:
            OSError: the file cannot be written, and names it.
        """
        if not row.keys() <= set(self._columns):
            self._file.close()
            self._begin(self.rows, row)
        self.rows.append({k: str(v) if k == "step" else f"{v:.6g}" for k, v in row.items()})
        self._append(_as_text(self._columns, self.rows[-1:], header=False))

    def _append(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            error.filename = str(self.run / NAME)
            raise

    @property
    def text(self) -> str:
        """What the file holds."""
        return _as_text(self._columns, self.rows)

    def _begin(self, rows: Sequence[Mapping[str, str]], more: Iterable[str]) -> None:
        """Writes `rows`, to go on behind them with the columns of these, and `more`."""
        self.rows: list[Mapping[str, str]] = list(rows)
        self._columns = list(dict.fromkeys([*COLUMNS, *(rows[0] if rows else ()), *more]))
        path = self.run / NAME
        with replacing(path) as beside:
            beside.write_text(self.text, encoding="utf-8", newline="")
        self._file = path.open("a", encoding="utf-8", newline="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of a row that the disk had no room for, which was reported when it was written
            self._file.close()


def _as_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Reads the rows of RUN/metrics.csv, first step first; none where the file is absent.

    Returns:
        Column -> number as it is written, or "" where a row has none. Every row has all of COLUMNS.

    Raises:
        InputError: the file is not whole, or differs from what the checkpoint of the run holds of it.
    """
    path = run / NAME
    saved = checkpoint.metrics_of(run)  # before the file, to which a run that trains meanwhile may add rows
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "it is not UTF-8") from error
    rows = parse_metrics(text, path)
    if saved is not None:
        expected = parse_metrics(saved, run / checkpoint.NAME)
        if [_given(row) for row in rows[: len(expected)]] != [_given(row) for row in expected]:
            raise _damaged(path, "it differs from what the checkpoint holds of it")
    return rows


def has_rows(run: Path) -> bool:
    """Whether RUN/metrics.csv has a line behind its header, whole or not."""
    path = run / NAME
    return path.is_file() and path.read_bytes().count(b"\n") > 1


def _given(row: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if value}


def parse_metrics(text: str, source: Path) -> list[dict[str, str]]:
    """Reads `text`, the content of metrics.csv, from the file `source`.

    Raises:
        InputError: it is not whole: columns or fields are missing, a field is no number, or the steps do not rise.
    """
    if not text.endswith("\n"):
        raise _damaged(source, "its last line is cut short")
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise _damaged(source, f"it is no CSV: {error}") from error
    if header[: len(COLUMNS)] != list(COLUMNS) or len(set(header)) < len(header):
        raise _damaged(source, "its columns are others")
    before = 0
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header) or not all(map(_NUMBER.fullmatch, line)):
            raise _damaged(source, f"line {number} has no number in each of {len(header)} columns")
        if not line[0].isdecimal() or int(line[0]) <= before:
            raise _damaged(source, f"the step of line {number} does not rise")
        before = int(line[0])
    return [dict(zip(header, line, strict=True)) for line in lines]


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is damaged ({why}): repeat the `ohem train` line of the run, which writes metrics.csv anew from the "
        "checkpoint, or remove the run, and the same line trains it again"
    )


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
    shown = (items[i] for i in range(len(items)))
    return iter(track(shown, escape(description), len(items), console=make_console(stderr=True)))
