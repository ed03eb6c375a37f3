"""Exact counts of all that was chosen in a training, by image and object, and by period.

Shapes: B: rows   C: columns of a row   G: objects of an image   K: classes   P: periods
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ohem.mining_log.rows import IOU, LABEL, LOSS, OBJECT, PERIODS, STEP, LoggedImage, Step

BINS = 10
"""Bins of the IoU: [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""
_COLUMNS = {"mined": torch.int64, "chosen": torch.int64, "loss": torch.float64}  # of images and their objects
_HEAD = ("steps", "minable", "chosen", "loss")


class ImageCounts:
    """How often each image was seen, and what was chosen in it: its background, then each object."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        """Name of an image -> its number in the log."""
        self._visits: list[int] = []
        self._columns: list[list[Tensor]] = [[] for _ in _COLUMNS]

    def visit(self, image: LoggedImage) -> int:
        """Counts a visit of an image. Returns its number."""
        number = self.numbers.setdefault(image.name, len(self.numbers))
        if number == len(self._visits):
            self._append(0, [torch.zeros(1, dtype=dtype) for dtype in _COLUMNS.values()])
        self._visits[number] += 1
        objects = 0 if image.boxes is None else len(image.boxes)
        for column in self._columns:
            column[number] = _sum(column[number], column[number].new_zeros(1 + objects))
        return number

    def add(self, rows: Tensor, place: Tensor, numbers: Sequence[int]) -> None:
        """Counts rows (B, C), of the images `numbers` that were visited; `place` (B,) is an index into these."""
        sizes = torch.tensor([len(self._columns[0][number]) for number in numbers])
        known = (rows[:, LABEL] <= 0) | (rows[:, OBJECT] >= 0)
        index = ((sizes.cumsum(0) - sizes)[place] + rows[:, OBJECT].long() + 1)[known]
        total = int(sizes.sum())
        chosen = torch.split(torch.bincount(index, minlength=total), sizes.tolist())
        losses = torch.split(torch.bincount(index, rows[known, LOSS].nan_to_num(), total), sizes.tolist())
        for number, count, loss in zip(numbers, chosen, losses, strict=True):
            for column, more in zip(self._columns, ((count > 0).long(), count, loss), strict=True):
                column[number] += more

    def merge(self, other: "ImageCounts") -> Tensor:
        """Adds the counts of another process. Returns (I,) int64, the numbers here of its images."""
        for theirs, name in enumerate(other.numbers):
            number = self.numbers.setdefault(name, len(self.numbers))
            if number == len(self._visits):
                self._append(0, [column[theirs][:0] for column in other._columns])
            self._visits[number] += other._visits[theirs]
            for column, more in zip(self._columns, other._columns, strict=True):
                column[number] = _sum(column[number], more[theirs])
        return torch.tensor([self.numbers[name] for name in other.numbers], dtype=torch.int64)

    def table(self) -> dict[str, list[Any]]:
        """Returns the columns of images.parquet: for each image a row of its background, object -1, then each object.

        `visits` counts the times that the image was seen, `mined` those in which a RoI of the object was chosen, and
        `chosen` these RoIs; `loss` is the sum of their losses.
        """
        sizes = [len(column) for column in self._columns[0]]
        return {
            "image": [name for name, size in zip(self.numbers, sizes, strict=True) for _ in range(size)],
            "object": [place for size in sizes for place in range(-1, size - 1)],
            "visits": [visits for visits, size in zip(self._visits, sizes, strict=True) for _ in range(size)],
            **{
                name: [value for values in column for value in values.tolist()]
                for name, column in zip(_COLUMNS, self._columns, strict=True)
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs."""
        return {
            "names": list(self.numbers),
            "sizes": torch.tensor([len(column) for column in self._columns[0]], dtype=torch.int64),
            "visits": torch.tensor(self._visits, dtype=torch.int64),
            **{
                name: torch.cat([torch.zeros(0, dtype=dtype), *column])
                for (name, dtype), column in zip(_COLUMNS.items(), self._columns, strict=True)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the counts by those of `state`."""
        self.__init__()  # type: ignore[misc]
        self.numbers = {name: number for number, name in enumerate(state["names"])}
        columns = (torch.split(state[name].clone(), state["sizes"].tolist()) for name in _COLUMNS)
        for visits, *values in zip(state["visits"].tolist(), *columns, strict=True):
            self._append(visits, values)

    def _append(self, visits: int, values: Sequence[Tensor]) -> None:
        self._visits.append(visits)
        for column, more in zip(self._columns, values, strict=True):
            column.append(more)


class PeriodCounts:
    """Counts of what was chosen in each period: steps, minable and chosen RoIs, loss, by IoU and by label."""

    def __init__(self) -> None:
        self.length = 1
        """Steps of a period."""
        self._periods: dict[int, Tensor] = {}
        self._last = 0  # number of the last step

    def add(self, steps: Sequence[Step], rows: Tensor) -> None:
        """Counts the rows (B, C) of some steps."""
        while max(step.number for step in steps) > PERIODS * self.length:
            self._double()
        of_step = torch.tensor([(step.number - 1) // self.length for step in steps])
        of_row = ((rows[:, STEP] - 1) // self.length).long()
        minable = torch.tensor([int(step.minable) for step in steps])
        # With accumulated gradients, several mini-batches are one step.
        numbers = {step.number: period for step, period in zip(steps, of_step.tolist(), strict=True)}
        for number in sorted(set(of_step.tolist())):
            here = rows[of_row == number]
            new = sum(period == number for step, period in numbers.items() if step != self._last)
            head = [new, int(minable[of_step == number].sum()), len(here), float(here[:, LOSS].nan_to_num().sum())]
            bins = torch.bincount((here[:, IOU] * BINS).nan_to_num().long().clamp(0, BINS - 1), minlength=BINS)
            labels = torch.bincount(here[:, LABEL].long().clamp(min=0))
            counts = torch.cat([torch.tensor(head, dtype=torch.float64), bins, labels])
            self._periods[number] = _sum(self._periods.get(number), counts)
        self._last = steps[-1].number

    def merge(self, other: "PeriodCounts") -> None:
        """Adds the counts of another process, of the same steps."""
        while other.length < self.length:
            other._double()
        while self.length < other.length:
            self._double()
        for number, values in other._periods.items():
            counts = values.clone()
            counts[0] = 0 if number in self._periods else counts[0]
            self._periods[number] = _sum(self._periods.get(number), counts)

    def table(self) -> dict[str, list[Any]]:
        """Returns the columns of periods.parquet.

        `first_step`, and in the period: `steps`, `minable` RoIs, `chosen` RoIs, the sum of their `loss`, their number
        by tenth of the IoU in `ious`, and by label 0..K in `labels`.
        """
        numbers = sorted(self._periods)
        width = max((len(values) for values in self._periods.values()), default=0)
        rows = [_sum(torch.zeros(width, dtype=torch.float64), self._periods[number]) for number in numbers]
        whole = [values.long().tolist() for values in rows]
        first = len(_HEAD)
        return {
            "first_step": [number * self.length + 1 for number in numbers],
            **{name: [values[place] for values in whole] for place, name in enumerate(_HEAD[:-1])},
            "loss": [float(values[first - 1]) for values in rows],
            "ious": [values[first : first + BINS] for values in whole],
            "labels": [values[first + BINS :] for values in whole],
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs."""
        return {"length": self.length, "last": self._last, "periods": dict(self._periods)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the counts by those of `state`."""
        self.length, self._last, self._periods = state["length"], state["last"], dict(state["periods"])

    def _double(self) -> None:
        self.length *= 2
        merged: dict[int, Tensor] = {}
        for number, values in self._periods.items():
            merged[number // 2] = _sum(merged.get(number // 2), values)
        self._periods = merged


def _sum(values: Tensor | None, more: Tensor) -> Tensor:
    """Returns the sum of two vectors, the shorter filled up with 0."""
    if values is None:
        return more
    total = more.new_zeros(max(len(values), len(more)))
    total[: len(values)] += values
    total[: len(more)] += more
    return total
