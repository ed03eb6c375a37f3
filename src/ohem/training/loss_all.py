"""The loss over all RoIs, whichever are trained on (paper, figure 3): measured, and kept in RUN/loss_all.csv.

The training losses of two samplers cannot be compared, since each is over the RoIs that its sampler chose; this can.
"""

import csv
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Self, get_type_hints

import torch
from torch import Tensor, nn

from ohem.data.loader import Example
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.files import describe_os_error, remove_leftovers, replacing
from ohem.rois import IGNORE, match

NAME = "loss_all.csv"
TERMS = 5  # numbers that `loss_sums` gives


@dataclass(frozen=True)
class MeanLoss:
    """Over all RoIs of some images."""

    images: int
    rois: int
    """That are not ignored."""
    loss_classifier: float
    """Mean per RoI, background included."""
    loss_box_reg: float
    """The same: RoIs of background count, with a loss of 0."""
    loss: float
    """Mean per RoI of the sum of both."""

    @classmethod
    def of(cls, sums: Tensor) -> Self:
        """From what `loss_sums` gave, added up."""
        images, rois, *losses = sums.tolist()
        return cls(int(images), int(rois), *(loss / max(rois, 1) for loss in losses))


def loss_over_all(model: FastRCNN, examples: Iterable[Example]) -> MeanLoss:
    """Mean loss per RoI over all RoIs of `examples`, one image after the other; dropout is off."""
    total = torch.zeros(TERMS, dtype=torch.float64)
    for example in examples:
        total += loss_sums(model, example)
    return MeanLoss.of(total)


@torch.inference_mode()
def loss_sums(model: FastRCNN, example: Example) -> Tensor:
    """Of one image: 1, its RoIs, and the sums of their `loss_classifier`, `loss_box_reg` and `loss`.

    The model is looked at in eval mode and left in the modes that it was in: no trace remains in it.

    Returns:
        (5,) float64 on the CPU, to be added up over images.
    """
    device = model.box_mean.device
    target = {name: value.to(device) for name, value in example.target.items()}
    with _evaluating(model):
        features = model.backbone([example.image.to(device)])
        rois = match([example.proposals.to(device)], [target], mean=model.box_mean, std=model.box_std)
        classifier, box_reg = model.read_only_parts(features, rois)
    counted = (rois.labels != IGNORE).cpu()
    sums = [values.cpu()[counted].double().sum() for values in (classifier, box_reg, classifier + box_reg)]
    return torch.stack([torch.tensor(1.0).double(), counted.sum().double(), *sums])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Row:
    """A line of RUN/loss_all.csv."""

    step: int
    data: str
    """The sources, as they were given."""
    images: int
    rois: int
    loss_classifier: float
    loss_box_reg: float
    loss: float
    data_digest: str
    """Of images, ground truth and proposals."""
    weights_digest: str


_COLUMNS = [*(field.name for field in fields(Row)), "crc"]


def read(run: Path) -> list[Row]:
    """The rows of RUN/loss_all.csv; none where the file is absent.

    Raises:
        InputError: the file is not whole: columns or fields are missing, a number is out of range or no number, or two
            rows are of the same step and data.
    """
    path = run / NAME
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "it is not UTF-8") from error
    if not text.endswith("\n"):
        raise _damaged(path, "its last line is cut short")
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise _damaged(path, f"it is no CSV: {error}") from error
    if header not in (_COLUMNS, _COLUMNS[:-1]):  # older versions wrote no CRC
        raise _damaged(path, "its columns are others")
    if not lines:
        raise _damaged(path, "it has no row")
    rows = [_row(line, header, path, number, number > len(lines)) for number, line in enumerate(lines, start=2)]
    if min(len({(row.step, row.data) for row in rows}), len({(row.step, row.data_digest) for row in rows})) < len(rows):
        raise _damaged(path, "two rows are of the same step and data")
    return rows


def _row(line: Sequence[str], header: Sequence[str], path: Path, number: int, last: bool) -> Row:
    kinds = get_type_hints(Row)
    if len(line) == len(header) and all(map(_is_field, kinds.values(), line)):
        row = Row(**{name: kind(text) for (name, kind), text in zip(kinds.items(), line, strict=False)})
        if len(line) == len(kinds) or line[-1] == _crc(line[:-1], last):
            return row
    raise _damaged(path, f"line {number} is not as it was written")


def _is_field(kind: type, text: str) -> bool:
    pattern = {int: r"\d{1,18}", float: r"\d+(\.\d+)?(e[+-]\d+)?", str: r"[^\x00-\x1f]+"}[kind]
    return re.fullmatch(pattern, text, re.ASCII) is not None


def _crc(values: Sequence[str], last: bool) -> str:
    """8 hexadecimal digits of a row; those of the last one differ, so that a file without its end is noticed."""
    return f"{zlib.crc32(','.join(values).encode(), int(last)):08x}"


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read ({why}): remove it to measure anew")


def known(run: Path, step: int, data_digest: str, weights_digest: str) -> bool:
    """Whether the loss of these weights at `step` on these data has been measured."""
    wanted = (step, data_digest, weights_digest)
    return any((row.step, row.data_digest, row.weights_digest) == wanted for row in read(run))


def record(run: Path, row: Row) -> None:
    """Adds `row`, in the place of one of the same step and data."""
    others = [
        old
        for old in read(run)
        if old.step != row.step or (old.data != row.data and old.data_digest != row.data_digest)
    ]
    # Read and written whole each time: a run that trains and a person who looks at it may both add rows.
    _write(run, [*others, row])


def drop_after(run: Path, step: int) -> None:
    """Removes the rows behind `step`, which a run that goes on from there measures anew."""
    rows = read(run)
    if any(row.step > step for row in rows):
        _write(run, [row for row in rows if row.step <= step])


def _write(run: Path, rows: Iterable[Row]) -> None:
    remove_leftovers(run)
    ordered = sorted(rows, key=lambda row: (row.data, row.step))
    if not ordered:
        (run / NAME).unlink(missing_ok=True)
        return
    with replacing(run / NAME) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in ordered:
            values = [f"{v:.9g}" if isinstance(v, float) else str(v) for v in astuple(row)]
            writer.writerow([*values, _crc(values, row is ordered[-1])])
