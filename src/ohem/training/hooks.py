"""Snapshots and measurements during a training: the loss over all RoIs (paper, figure 3)."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ohem.config.schema import Recipe
from ohem.data.loader import Examples
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.models.build import as_fast_rcnn
from ohem.training import roi_loss, snapshots
from ohem.training.distributed import Agreement, agreed
from ohem.training.fingerprints import digest_of_examples, digest_of_weights
from ohem.training.roi_loss import LossRow, MeanLoss


class Observer:
    """Keeps snapshots and measures the loss at the steps that the recipe names. It does not change the training.

    Call it after each step, and where a run is resumed.

    Args:
        recipe: options `run.snapshot_every` and `run.loss_every`.
        run: an existing folder.
        examples: the training images with their proposals.
        agreement: of the processes, with the received signals.
        detector: the trained model, without the wrapper of Fabric.
        report: called with each line of text to print.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        examples: Examples,
        agreement: Agreement,
        detector: Detector,
        report: Callable[[str], None],
    ) -> None:
        self.recipe, self.run, self.examples = recipe, run, examples
        self.agreement, self.detector, self.report = agreement, detector, report
        self.fabric = agreement.fabric

    def drop_after(self, step: int) -> None:
        """Removes snapshots and measurements after `step`, from which the run is resumed."""
        if self.fabric.is_global_zero:
            self.agreement.attempt(partial(snapshots.drop_after, self.run, step))
            self.agreement.attempt(partial(roi_loss.drop_after, self.run, step))
        self.agreement.check()

    def __call__(self, step: int, last: int) -> int:
        """Does what is due at `step` and is not done yet.

        Returns:
            The highest number of a received signal, or 0. A signal ends a measurement; it is repeated when the run is
            resumed.

        Raises:
            Failed: a file cannot be read or written in one of the processes.
        """
        settings = self.recipe.run
        if _due(settings.snapshot_every, step, last):
            if self.fabric.is_global_zero:
                self.agreement.attempt(partial(snapshots.save_snapshot, self.run, step, self.detector.state_dict()))
            self.agreement.check()
        return self._measure(step) if _due(settings.loss_every, step, last) else 0

    def _measure(self, step: int) -> int:
        main, started = self.fabric.is_global_zero, time.perf_counter()
        weights = digest_of_weights(self.detector.state_dict()) if main else ""
        known = main and self.agreement.attempt(
            lambda: roi_loss.is_measured(self.run, step, self._data_digest, weights)
        )
        self.agreement.check()
        if agreed(self.fabric, int(bool(known))):
            return 0
        detector = as_fast_rcnn(self.detector, "--run.loss-every")
        total = torch.zeros(roi_loss.TERMS, dtype=torch.float64)
        share, processes = self.fabric.global_rank, self.fabric.world_size
        for first in range(0, len(self.examples), processes):
            if signum := self.agreement.check():
                return signum
            if first + share < len(self.examples):
                sums = self.agreement.attempt(partial(self._sums, detector, first + share))
                total += 0 if sums is None else sums
        self.agreement.check()
        mean = MeanLoss.of(self._sum_over_processes(total))
        if main:
            data = " ".join(self.recipe.data.train + self.recipe.data.negatives)
            row = LossRow(step, data, **asdict(mean), data_digest=self._data_digest, weights_digest=weights)
            self.agreement.attempt(partial(roi_loss.add_row, self.run, row))
            self.report(f"step {step}: loss over all RoIs {mean.loss:.4g} ({time.perf_counter() - started:.0f} s)")
        return self.agreement.check()

    def _sums(self, detector: FastRCNN, index: int) -> Tensor:
        return roi_loss.loss_sums(detector, self.examples[index])

    @cached_property
    def _data_digest(self) -> str:
        return digest_of_examples(self.examples)

    def _sum_over_processes(self, numbers: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return numbers
        return cast(Tensor, self.fabric.all_reduce(numbers.to(self.fabric.device), reduce_op="sum")).cpu()


def _due(every: int, step: int, last: int) -> bool:
    return every > 0 and step > 0 and (step % every == 0 or step == last)
