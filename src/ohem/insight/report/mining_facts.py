"""What a mining log says about a training."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ohem.mining_log import COLUMNS
from ohem.mining_log.tables import Columns, read_tables

MOMENTS = 5
"""Moments of a training whose hardest RoIs the report draws: its first fifth to its last."""
IOUS = ((0, 1), (1, 5), (5, 8), (8, 10))
"""Groups of tenths of the IoU in the chart."""


@dataclass(frozen=True)
class Row:
    """A RoI that was chosen: the columns of rows.parquet."""

    step: int
    image: str
    placed: bool
    box: tuple[float, float, float, float]
    label: int
    loss: float
    iou: float
    object: int
    taken_for: int
    taken_score: float


@dataclass(frozen=True)
class ObjectCount:
    """How often an object was mined."""

    image: str
    object: int
    visits: int
    mined: int


@dataclass(frozen=True)
class Period:
    """Means over a part of the training."""

    step: float
    """Middle of the period."""
    foreground: float
    """Share of the chosen RoIs."""
    loss: float
    """Mean loss of the chosen RoIs; 0 if the sampler does not use losses."""
    ious: tuple[float, ...]
    """Shares of the chosen RoIs in the groups `IOUS`."""


@dataclass(frozen=True)
class MiningFacts:
    """What was mined in a training."""

    steps: int
    chosen: float
    """Mean number of chosen RoIs of a step."""
    minable: float
    """Mean number of RoIs of a step that could be chosen."""
    labels: tuple[int, ...]
    """Number of chosen RoIs of each label 0..K."""
    periods: tuple[Period, ...]
    hardest: tuple[tuple[Row, ...], ...]
    """The hardest RoIs of `MOMENTS` parts of the training, hardest first; one RoI of an image. None without losses."""
    background: tuple[Row, ...]
    """The hardest background of the last part; one RoI of an image."""
    objects: tuple[ObjectCount, ...]
    """All objects of the images that were seen."""

    @property
    def never(self) -> list[ObjectCount]:
        """Objects of which no RoI was ever chosen, those of the most visits first."""
        return sorted((o for o in self.objects if o.mined == 0), key=lambda o: (-o.visits, o.image, o.object))

    @property
    def always(self) -> list[ObjectCount]:
        """Objects of which a RoI was chosen in every visit, those of the most visits first."""
        mined = (o for o in self.objects if o.mined == o.visits)
        return sorted(mined, key=lambda o: (-o.visits, o.image, o.object))


def read_mining(folder: Path, most: int) -> MiningFacts | None:
    """Reads a mining log.

    Args:
        folder: folder of the tables; those may be in its folder `mining`.
        most: highest number of rows of a moment.

    Returns:
        None if there is no mining log.

    Raises:
        InputError: pyarrow is missing, or a table is damaged.
    """
    tables = read_tables(folder, "ohem report")
    if tables is None:
        return None
    rows, images, periods = tables.values()
    steps = sum(periods["steps"])
    if not steps:
        return None
    parts = _by_loss(rows)
    return MiningFacts(
        steps=steps,
        chosen=sum(periods["chosen"]) / steps,
        minable=sum(periods["minable"]) / steps,
        labels=tuple(map(sum, zip(*periods["labels"], strict=True))),
        periods=tuple(_periods(periods)),
        hardest=tuple(tuple(_one_of_an_image(of_part, most)) for of_part in parts),
        background=tuple(_one_of_an_image((row for row in parts[-1] if row.label == 0), most)),
        objects=tuple(
            ObjectCount(*values)
            for values in zip(*(images[name] for name in ("image", "object", "visits", "mined")), strict=True)
            if values[1] >= 0
        ),
    )


def _periods(table: Columns) -> list[Period]:
    result = []
    for first, steps, chosen, loss, ious, labels in zip(
        *(table[name] for name in ("first_step", "steps", "chosen", "loss", "ious", "labels")), strict=True
    ):
        count = max(chosen, 1)
        groups = tuple(sum(ious[low:high]) / count for low, high in IOUS)
        result.append(Period(first + (steps - 1) / 2, sum(labels[1:]) / count, loss / count, groups))
    return result


def _by_loss(table: Columns) -> list[list[Row]]:
    """Returns the RoIs with a loss of each of `MOMENTS` parts of the training, hardest first."""
    rows = [
        Row(step, image, bool(placed), (x1, y1, x2, y2), *rest)
        for step, image, placed, x1, y1, x2, y2, *rest in zip(*(table[name] for name in COLUMNS), strict=True)
    ]
    last = max((row.step for row in rows), default=0)
    parts: list[list[Row]] = [[] for _ in range(MOMENTS)]
    for row in sorted(rows, key=lambda row: -row.loss):
        if not math.isnan(row.loss):  # of a sampler without losses
            parts[(row.step - 1) * MOMENTS // last].append(row)
    return parts


def _one_of_an_image(rows: Iterable[Row], most: int) -> list[Row]:
    """Returns the first row of each image, `most` at most."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.image, row)
    return list(first.values())[:most]
