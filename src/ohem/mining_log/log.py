"""The mining log, an object around the sampler of any training loop.

    log = MiningLog(OHEMSampler(), "runs/mine/mining")
    model = with_ohem(model, log)
    for images, targets, names in loader:
        log.begin_step(names)
        ...
    log.save()

Shapes: B: chosen RoIs of a step   N: images   K: classes
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ohem.checks import check_integer, check_sequence, describe
from ohem.extras import import_extra
from ohem.io.files import atomic_write, remove_leftovers
from ohem.mining_log.counts import ImageCounts, PeriodCounts
from ohem.mining_log.rows import (
    COLUMNS,
    IMAGE,
    PERIODS,
    STEP,
    WHOLE,
    LoggedImage,
    Step,
    make_rows,
    most_probable_wrong,
    newest_and_hardest,
)
from ohem.recorder import Recorder
from ohem.rois import IGNORE, RoIs
from ohem.samplers import AllSampler, Losses, RoISampler

TABLES = ("rows", "images", "periods")
WAITING = 8  # steps after which what was chosen is counted, which is faster at once
COMPACT = 6  # times the size: more rows than this are reduced to the newest and hardest


class MiningLog(Recorder):
    """A sampler that wraps another sampler and logs what it chooses. It is also a `Recorder`.

    `save` writes three tables in Parquet's format, which pandas, polars and DuckDB open:

    - rows.parquet, the newest and the hardest of the chosen RoIs: `COLUMNS`;
    - images.parquet, exact counts of the chosen RoIs by object, and in the background of each image, with their loss;
    - periods.parquet, exact counts over the training, by IoU and by label.

    The size is bounded, however long the training is.

    Copies and pickles, such as those in a copied model, are recorders without the log.

    Args:
        sampler: the sampler whose choices are logged and returned unchanged.
        path: folder for the tables.
        size: number of rows that are kept of the newest, of the hardest of all, and of the hardest of all periods (the
            training has at most 64 periods of equal length).

    Raises:
        TypeError, ValueError: `sampler` cannot be called, `path` is no path, or `size` is below 64.
    """

    def __init__(self, sampler: RoISampler, path: str | Path, size: int = 4096) -> None:
        super().__init__(sampler)
        check_integer("size", size, PERIODS)
        if not isinstance(path, str | Path):
            raise TypeError(f"path must be the path of a folder, not {describe(path)}")
        self.path, self.size = Path(path), size
        self.step = 0
        self._next: list[LoggedImage] | None = None
        self._images, self._periods = ImageCounts(), PeriodCounts()
        self._waiting: list[Step] = []
        self._rows = torch.zeros(0, len(COLUMNS), dtype=torch.float64)
        self.continues = False
        """Whether the folder may have tables already, which `save` replaces."""

    def begin_step(self, images: Sequence[str | LoggedImage], step: int | None = None) -> None:
        """Says which images the next call gets. Without it, images are named by their place in the mini-batch.

        Args:
            images: the N images of the mini-batch, in order: their names, or with their objects and scale.
            step: number of the step, from 1. Default: one more than before.

        Raises:
            TypeError, ValueError: `images` is no sequence, or `step` is not an integer of at least 1.
        """
        check_sequence("images", images, "names, one per image")
        if step is not None:
            check_integer("step", step, 1)
        self.step = self.step + 1 if step is None else step
        self._next = [image if isinstance(image, LoggedImage) else LoggedImage(str(image)) for image in images]

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        images, self._next = self._next, None
        if images is not None and len(images) != rois.num_images:
            raise ValueError(f"begin_step must get the {rois.num_images} images of the mini-batch, not {len(images)}")
        chosen = super().__call__(rois, losses)
        if images is None:
            self.step += 1
            images = [LoggedImage(str(place)) for place in range(rois.num_images)]
        here = rois[chosen]
        loss = torch.full_like(here.ious, torch.nan) if self.losses is None else self.losses[chosen]
        columns = torch.stack([here.images, here.labels, loss, here.ious], dim=1)
        rows = torch.cat([columns, here.boxes[:, :4].to(columns)], dim=1).detach()
        if len(self._waiting) >= WAITING:
            self._count()  # before the new step, of which `watch` does not know yet what its RoIs are taken for
        self._waiting.append(Step(self.step, images, (rois.labels != IGNORE).sum(), rows))
        return chosen

    def watch(self, layer: nn.Module, *, ascending: bool = False) -> None:
        """Also logs what each chosen RoI is taken for.

        Args:
            layer: its output, or the first of its outputs, are the scores (B, K + 1) of the chosen RoIs, before the
                softmax. Its calls without gradient, or for another number of RoIs, are not read.
            ascending: whether the chosen RoIs reach `layer` in order of their index, as in torchvision's R-CNN, and not
                in that of the sampler.
        """

        def read(_: nn.Module, __: Any, output: Any) -> None:
            scores = output[0] if isinstance(output, tuple) else output
            if not (torch.is_grad_enabled() and self._waiting and self.chosen is not None):
                return
            step = self._waiting[-1]
            if len(scores) == len(step.chosen) and step.taken is None:
                order = self.chosen.argsort() if ascending else torch.arange(len(scores), device=scores.device)
                step.taken = torch.empty_like(step.chosen[:, :2])
                step.taken[order] = most_probable_wrong(scores, step.chosen[order, 1].long()).to(step.taken)

        layer.register_forward_hook(read)

    def tables(self) -> dict[str, dict[str, list[Any]]]:
        """Returns the columns of the tables `rows`, `images` and `periods`, as lists by name."""
        self._count()
        self._compact()
        names = list(self._images.numbers)
        columns = zip(COLUMNS, self._rows.unbind(1), strict=True)
        rows: dict[str, list[Any]] = {n: (c.long() if n in WHOLE else c).tolist() for n, c in columns}
        rows["image"] = [names[number] for number in rows["image"]]
        return dict(zip(TABLES, (rows, self._images.table(), self._periods.table()), strict=True))

    def save(self) -> None:
        """Writes the tables into the folder `path`. It needs pyarrow.

        Raises:
            InputError: pyarrow is not installed.
            FileExistsError: the folder has a log that this object neither wrote nor continues by `load_state_dict`.
            OSError: a file cannot be written.
        """
        arrow, parquet = (import_extra(name, "the mining log") for name in ("pyarrow", "pyarrow.parquet"))
        files = {name: self.path / f"{name}.parquet" for name in TABLES}
        if not self.continues and files["rows"].exists():
            raise FileExistsError(f"{self.path} has the mining log of another training: name another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        for name, columns in self.tables().items():
            with atomic_write(files[name]) as temporary:
                parquet.write_table(arrow.table(columns), temporary, write_page_checksum=True)
        self.continues = True

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` needs to continue the log exactly."""
        self._count()
        self._compact()
        parts = {"images": self._images.state_dict(), "periods": self._periods.state_dict()}
        return {"step": self.step, "rows": self._rows, **parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the log of `state`, which `state_dict` returned; what was logged before is dropped."""
        self.step, self._rows, self._waiting = state["step"], state["rows"], []
        self._images.load_state_dict(state["images"])
        self._periods.load_state_dict(state["periods"])
        self.continues = True

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds what another process logged in the same steps, `state` of its `state_dict`, on other images."""
        self._count()
        other = MiningLog(self.sampler, self.path, self.size)
        other.load_state_dict(state)
        numbers = self._images.merge(other._images)
        self._periods.merge(other._periods)
        rows = other._rows.clone()
        rows[:, IMAGE] = numbers[rows[:, IMAGE].long()].double()
        rows = torch.cat([self._rows, rows])
        self._rows = rows[rows[:, STEP].argsort(stable=True)]
        self._compact()

    def clear(self) -> None:
        """Forgets what was logged; `step` stays."""
        self._images, self._periods = ImageCounts(), PeriodCounts()
        self._rows, self._waiting = self._rows[:0], []

    def _count(self) -> None:
        """Adds the waiting steps to the rows and the counts."""
        steps, self._waiting = self._waiting, []
        if not steps:
            return
        numbers = [self._images.visit(image) for step in steps for image in step.images]
        rows, place = make_rows(steps, torch.tensor(numbers, dtype=torch.int64))
        self._images.add(rows, place, numbers)
        self._periods.add(steps, rows)
        self._rows = torch.cat([self._rows, rows])
        if len(self._rows) > COMPACT * self.size:
            self._compact()

    def _compact(self) -> None:
        self._rows = newest_and_hardest(self._rows, self.size, self._periods.length)

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes copies and pickles plain recorders: two objects must not write the same files."""
        return Recorder, (self.sampler,)


def is_state(value: Any) -> bool:
    """Returns whether `value` is a state that `load_state_dict` can continue."""
    try:
        log = MiningLog(AllSampler(), "")
        log.load_state_dict(value)
        log.tables()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        return False
    return True
