"""The mean loss over all RoIs (paper, figure 3), and RUN/loss_all.csv, which keeps it.

The training losses of two samplers cannot be compared, since each is over the RoIs that its sampler chose. The loss
over all RoIs can.
"""

import csv
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from ohem.data.loader import Example, Examples
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.io.csv_files import DamagedCSV, parse_rows, read_text
from ohem.io.files import atomic_write, remove_leftovers
from ohem.io.progress import tracked
from ohem.rois import IGNORE, match
from ohem.training.distributed import Fabric, compute_shared

NAME = "loss_all.csv"
TERMS = 5  # numbers that `loss_sums` gives


@dataclass(frozen=True)
class MeanLoss:
    """Mean losses over all RoIs of some images."""

    images: int
    rois: int
    """Number of RoIs that are not ignored."""
    loss_classifier: float
    """Mean per RoI, background included."""
    loss_box_reg: float
    """Mean per RoI; background RoIs count with a loss of 0."""
    loss: float
    """Mean per RoI of the sum of both."""

    @classmethod
    def of(cls, sums: Tensor) -> "MeanLoss":
        """Makes the means from the sum of what `loss_sums` returned for the images."""
        images, rois, *losses = sums.tolist()
        return cls(int(images), int(rois), *(loss / max(rois, 1) for loss in losses))


def loss_over_all(
    model: FastRCNN,
    examples: Examples | Sequence[Example],
    title: str = "loss over all RoIs",
    fabric: Fabric | None = None,
) -> MeanLoss:
    """Computes the mean loss per RoI over all RoIs of `examples`, image by image, without dropout.

    Args:
        model: the detector.
        examples: the images, which the processes share.
        title: text of the progress.
        fabric: the processes, all of which must call it; None: this one alone.
    """

    def compute(places: range) -> Iterator[Tensor]:
        shared = Subset(examples, places)  # type: ignore[arg-type]  # a list does as well
        enabled = fabric is None or fabric.is_global_zero
        return (loss_sums(model, example) for example in tracked(shared, title, enabled=enabled))

    every = range(len(examples))
    return MeanLoss.of(sum_of(compute(every) if fabric is None else compute_shared(fabric, len(every), compute)))


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Returns the sum (5,) of what `loss_sums` returned for some images, in their order."""
    total = torch.zeros(TERMS, dtype=torch.float64)
    for term in terms:
        total += term
    return total


@torch.inference_mode()
def loss_sums(model: FastRCNN, example: Example) -> Tensor:
    """Computes the sums of the losses of all RoIs of one image, in eval mode; the model is not changed.

    Returns:
        (5,) float64 on the CPU: 1 image, number of RoIs, sums of `loss_classifier`, `loss_box_reg` and `loss`.
    """
    device = model.box_mean.device
    target = {name: value.to(device) for name, value in example.target.items()}
    with _evaluating(model):
        features = model.feature_map([example.image.to(device)])
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
class LossRow:
    """A row of RUN/loss_all.csv."""

    step: int
    data: str
    """Sources, as they were given."""
    images: int
    rois: int
    loss_classifier: float
    loss_box_reg: float
    loss: float
    data_digest: str
    """Digest of images, ground truth and proposals."""
    weights_digest: str


_COLUMNS = [*(field.name for field in fields(LossRow)), "crc"]


def read(run: Path) -> list[LossRow]:
    """Reads the rows of RUN/loss_all.csv; none where the file does not exist.

    Raises:
        InputError: the file is damaged: columns or fields are missing, a field is no number in its range, or two rows
            are of the same step and data.
    """
    path = run / NAME
    try:
        text = read_text(path)
        if text is None:
            return []
        header, lines = parse_rows(text)
    except DamagedCSV as error:
        raise _damaged(path, str(error)) from error
    if header not in (_COLUMNS, _COLUMNS[:-1]):  # older versions wrote no CRC
        raise _damaged(path, "its columns are others")
    if not lines:
        raise _damaged(path, "it has no row")
    rows = [_row(line, header, path, i + 1, _crc_seeds(i, len(lines))) for i, line in enumerate(lines, start=1)]
    if min(len({(row.step, row.data) for row in rows}), len({(row.step, row.data_digest) for row in rows})) < len(rows):
        raise _damaged(path, "two rows are of the same step and data")
    return rows


def _row(line: Sequence[str], header: Sequence[str], path: Path, number: int, seeds: Sequence[int]) -> LossRow:
    kinds = get_type_hints(LossRow)
    if len(line) == len(header) and all(map(_is_field, kinds.values(), line)):
        row = LossRow(**{name: kind(text) for (name, kind), text in zip(kinds.items(), line, strict=False)})
        if len(line) == len(kinds) or line[-1] in [_crc(line[:-1], seed) for seed in seeds]:
            return row
    raise _damaged(path, f"line {number} was changed after it was written, or a line before it was removed")


def _is_field(kind: type, text: str) -> bool:
    pattern = {int: r"\d{1,18}", float: r"\d+(\.\d+)?(e[+-]\d+)?", str: r"[^\x00-\x1f]+"}[kind]
    return re.fullmatch(pattern, text, re.ASCII) is not None


def _crc(values: Sequence[str], seed: int) -> str:
    """Returns 8 hexadecimal digits of a row."""
    return f"{zlib.crc32(','.join(values).encode(), seed):08x}"


def _crc_seeds(number: int, count: int) -> tuple[int, ...]:
    """Returns the seeds that the CRC of row `number` of `count` may have, the seed that is written first.

    The seed of the last row is the number of rows, so that a missing row is noticed. In older versions it was 1.
    """
    return (count, 1) if number == count else (0,)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} cannot be read ({why}): remove it, and the loss is measured again")


def is_measured(run: Path, step: int, data_digest: str, weights_digest: str) -> bool:
    """Returns whether the loss of these weights at `step` on these data has been measured."""
    wanted = (step, data_digest, weights_digest)
    return any((row.step, row.data_digest, row.weights_digest) == wanted for row in read(run))


def add_row(run: Path, row: LossRow) -> None:
    """Adds `row`; it replaces a row of the same step and data."""
    others = [
        old
        for old in read(run)
        if old.step != row.step or (old.data != row.data and old.data_digest != row.data_digest)
    ]
    # The whole file is read and written each time, since a training and `ohem loss` may both add rows.
    _write(run, [*others, row])


def drop_after(run: Path, step: int) -> None:
    """Removes the rows after `step`; a run that is resumed from there measures them again."""
    rows = read(run)
    if any(row.step > step for row in rows):
        _write(run, [row for row in rows if row.step <= step])


def _write(run: Path, rows: Iterable[LossRow]) -> None:
    remove_leftovers(run)
    ordered = sorted(rows, key=lambda row: (row.data, row.step))
    if not ordered:
        (run / NAME).unlink(missing_ok=True)
        return
    with atomic_write(run / NAME) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for number, row in enumerate(ordered, start=1):
            values = [f"{v:.9g}" if isinstance(v, float) else str(v) for v in astuple(row)]
            writer.writerow([*values, _crc(values, _crc_seeds(number, len(ordered))[0])])
