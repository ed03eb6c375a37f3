"""RUN/metrics.csv: the numbers that a training logs, and how the file is read and checked."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ohem.errors import InputError
from ohem.io.csv_files import DamagedCSV, parse_rows, read_text
from ohem.io.files import atomic_write
from ohem.training import checkpoint

NAME = "metrics.csv"
COLUMNS = (
    "step", "lr", "loss", "loss_classifier", "loss_box_reg", "grad_norm",
    "rois", "chosen", "foreground", "far", "survivors", "loss_chosen", "loss_all", "nan", "seconds",
)  # fmt: skip


_NUMBER = re.compile(r"-?(\d+(\.\d+)?(e[+-]\d+)?|inf|nan)|")


class MetricsLog:
    """Writer of RUN/metrics.csv: one row every `log_every` steps. Rows after the step of a resumed run are dropped.

    COLUMNS come first, then all other logged numbers, such as the losses of torchvision's detectors. Of several
    processes, the numbers are those of the whole mini-batch, and `seconds` those of the first.

    Args:
        run: folder of the run.
        resume_step: step from which the run is resumed; 0 for a new run.
        text: text of the file in the checkpoint of that step, which replaces the file. None if the checkpoint is of an
            older version: the rows of the file are used.

    Raises:
        InputError: the earlier rows are damaged.
    """

    def __init__(self, run: Path, resume_step: int, text: str | None = None) -> None:
        self.run = run
        rows = []
        if resume_step:  # a new run does not need earlier rows
            rows = read_metrics(run) if text is None else parse_metrics(text, run / checkpoint.NAME)
        self._begin([row for row in rows if int(row["step"]) <= resume_step], ())

    def write(self, row: Mapping[str, float]) -> None:
        """Appends `row`; columns that it does not have stay empty.

        Raises:
            OSError: the file, which the error names, cannot be written.
        """
        if not row.keys() <= set(self._columns):
            self._file.close()
            self._begin(list(csv.DictReader(io.StringIO(self.text))), row)
        texts = {k: str(v) if k == "step" else f"{v:.6g}" for k, v in row.items()}
        # Kept as text: as a dict, a row would take 1.3 KB of memory, and a training may have a million.
        self._lines.append(_as_text(self._columns, [texts], header=False))
        self._append(self._lines[-1])

    def _append(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            error.filename = str(self.run / NAME)
            raise

    @property
    def text(self) -> str:
        """Content of the file."""
        return _as_text(self._columns, ()) + "".join(self._lines)

    def _begin(self, rows: Sequence[Mapping[str, str]], more: Iterable[str]) -> None:
        """Writes `rows` with their columns and those in `more`, and opens the file to append."""
        self._columns = list(dict.fromkeys([*COLUMNS, *(rows[0] if rows else ()), *more]))
        self._lines = _as_text(self._columns, rows, header=False).splitlines(keepends=True)
        path = self.run / NAME
        with atomic_write(path) as temporary:
            temporary.write_text(self.text, encoding="utf-8", newline="")
        self._file = path.open("a", encoding="utf-8", newline="")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk was reported when the row was written
            self._file.close()


def _as_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Reads the rows of RUN/metrics.csv, first step first; none where the file does not exist.

    Returns:
        Column -> number as it is written, or "" where a row has none. Every row has all of COLUMNS.

    Raises:
        InputError: the file is damaged, or differs from its copy in the checkpoint of the run.
    """
    path = run / NAME
    saved = checkpoint.metrics_of(run)  # read first, since a training may add rows to the file meanwhile
    try:
        text = read_text(path)
    except DamagedCSV as error:
        raise _damaged(path, str(error)) from error
    if text is None:
        return []
    rows = parse_metrics(text, path)
    if saved is not None:
        expected = parse_metrics(saved, run / checkpoint.NAME)
        if [_without_empty(row) for row in rows[: len(expected)]] != [_without_empty(row) for row in expected]:
            raise _damaged(path, "it differs from its copy in the checkpoint")
    return rows


def has_rows(run: Path) -> bool:
    """Returns whether RUN/metrics.csv has a line after its header, whole or not."""
    path = run / NAME
    return path.is_file() and path.read_bytes().count(b"\n") > 1


def _without_empty(row: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if value}


def parse_metrics(text: str, source: Path) -> list[dict[str, str]]:
    """Reads `text`, the content of metrics.csv, from the file `source`.

    Raises:
        InputError: columns or fields are missing, a field is no number, or the steps do not increase.
    """
    try:
        header, lines = parse_rows(text)
    except DamagedCSV as error:
        raise _damaged(source, str(error)) from error
    if header[: len(COLUMNS)] != list(COLUMNS) or len(set(header)) < len(header):
        raise _damaged(source, "its columns are others")
    before = 0
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header) or not all(map(_NUMBER.fullmatch, line)):
            raise _damaged(source, f"line {number} has no number in each of {len(header)} columns")
        if not line[0].isdecimal() or int(line[0]) <= before:
            raise _damaged(source, f"the step of line {number} does not increase")
        before = int(line[0])
    return [dict(zip(header, line, strict=True)) for line in lines]


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is damaged ({why}): repeat the `ohem train` command of the run, which writes metrics.csv again from "
        "the checkpoint, or remove the run and train it again"
    )


class RunningMeans:
    """Means of logged numbers over some steps; a number counts in the steps that have it."""

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
