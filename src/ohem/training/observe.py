"""What is kept and measured of a run beside its training: snapshots, and the loss over all RoIs (paper, figure 3)."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ohem.data.loader import Examples
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.training import loss_all, snapshots
from ohem.training.agreement import Agreement
from ohem.training.config import Recipe
from ohem.training.detectors import as_fast_rcnn
from ohem.training.digests import digest_of_examples, digest_of_weights
from ohem.training.launch import agreed
from ohem.training.loss_all import MeanLoss, Row


class Observer:
    """Called after each step, and where a run goes on: leaves the training after it as it would be without.

    Args:
        recipe: says at which steps.
        run: an existing folder.
        examples: the training images with their proposals.
        agreement: of the processes, with the signals that came.
        detector: as it is trained, without what Fabric wraps it in.
        tell: is given a line to show.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        examples: Examples,
        agreement: Agreement,
        detector: Detector,
        tell: Callable[[str], None],
    ) -> None:
        self.recipe, self.run, self.examples = recipe, run, examples
        self.agreement, self.detector, self.tell = agreement, detector, tell
        self.fabric = agreement.fabric

    def forget_after(self, step: int) -> None:
        """Removes what an earlier try left behind `step`, from which the run goes on."""
        if self.fabric.is_global_zero:
            self.agreement.attempt(partial(snapshots.drop_after, self.run, step))
            self.agreement.attempt(partial(loss_all.drop_after, self.run, step))
        self.agreement.check()

    def __call__(self, step: int, last: int) -> int:
        """Does what is due at `step` and not yet done.

        Returns:
            The highest number of a signal that came, or 0. A signal ends a measurement, which is then taken up where
            the run goes on.

        Raises:
            Failed: a file cannot be read or written, in one of the processes.
        """
        settings = self.recipe.run
        if _due(settings.snapshot_every, step, last):
            if self.fabric.is_global_zero:
                self.agreement.attempt(partial(snapshots.keep, self.run, step, self.detector.state_dict()))
            self.agreement.check()
        return self._measure(step) if _due(settings.loss_every, step, last) else 0

    def _measure(self, step: int) -> int:
        main, started = self.fabric.is_global_zero, time.perf_counter()
        weights = digest_of_weights(self.detector.state_dict()) if main else ""
        known = main and self.agreement.attempt(lambda: loss_all.known(self.run, step, self._data_digest, weights))
        self.agreement.check()
        if agreed(self.fabric, int(bool(known))):
            return 0
        detector = as_fast_rcnn(self.detector, "--run.loss-every")
        total = torch.zeros(loss_all.TERMS, dtype=torch.float64)
        share, processes = self.fabric.global_rank, self.fabric.world_size
        for first in range(0, len(self.examples), processes):
            if signum := self.agreement.check():
                return signum
            if first + share < len(self.examples):
                sums = self.agreement.attempt(partial(self._sums, detector, first + share))
                total += 0 if sums is None else sums
        self.agreement.check()
        mean = MeanLoss.of(self._added_up(total))
        if main:
            data = " ".join(self.recipe.data.train)
            row = Row(step, data, **asdict(mean), data_digest=self._data_digest, weights_digest=weights)
            self.agreement.attempt(partial(loss_all.record, self.run, row))
            self.tell(f"step {step}: loss over all RoIs {mean.loss:.4g} ({time.perf_counter() - started:.0f} s)")
        return self.agreement.check()

    def _sums(self, detector: FastRCNN, index: int) -> Tensor:
        return loss_all.loss_sums(detector, self.examples[index])

    @cached_property
    def _data_digest(self) -> str:
        return digest_of_examples(self.examples)

    def _added_up(self, numbers: Tensor) -> Tensor:
        """Over the processes."""
        if self.fabric.world_size == 1:
            return numbers
        return cast(Tensor, self.fabric.all_reduce(numbers.to(self.fabric.device), reduce_op="sum")).cpu()


def _due(every: int, step: int, last: int) -> bool:
    return every > 0 and step > 0 and (step % every == 0 or step == last)
