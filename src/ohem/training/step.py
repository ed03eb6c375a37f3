"""One step of the training: the losses of a mini-batch, their gradients, and SGD."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ohem.config.schema import Recipe
from ohem.data.loader import Example
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.io.json_files import write_json
from ohem.kernels.fast_linear import fast_linear
from ohem.recorder import Recorder
from ohem.training.distributed import Fabric, agreed, first_of, share_losses
from ohem.training.joint import Choice, choose, replayed
from ohem.training.logs import mining
from ohem.training.logs.evidence import evidence
from ohem.training.logs.metrics_log import RunningMeans
from ohem.training.optimizer import build_optimizer, learning_rate
from ohem.training.whole_batch import WholeBatch


class TrainingStep:
    """The detector and its optimizer, which a call updates once.

    Args:
        recipe: settings of the run.
        run: folder for the evidence where a loss is not finite.
        fabric: devices and processes.
        detector: in its precision and with its initial weights.
        recorders: samplers of the detector, by the prefix of their columns in metrics.csv; the first chooses RoIs.
    """

    def __init__(
        self, recipe: Recipe, run: Path, fabric: Fabric, detector: Detector, recorders: Mapping[str, Recorder]
    ) -> None:
        self.recipe, self.run, self.fabric, self.detector, self.recorders = recipe, run, fabric, detector, recorders
        self.recorder = next(iter(recorders.values()))
        self.whole = WholeBatch(recipe, fabric, detector)
        self.recorder.sampler = self.whole.sampler(self.recorder.sampler)
        self.shortlist = detector.shortlist if isinstance(detector, FastRCNN) else None
        # A fused optimizer reads the weights once; but Fabric cannot clip gradients that a scaler still has to divide.
        self.scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        optimizer = build_optimizer(detector, recipe.solver, fused=not self.scaled)
        self.model, self.optimizer = fabric.setup(detector, optimizer)
        self.number = 0

    def __call__(self, batch: list[Example], number: int, statistics: bool) -> dict[str, float]:
        """Updates the weights once, and returns numbers to log.

        Args:
            batch: the images of this process.
            number: number of the step, from 1.
            statistics: whether the numbers include those of the mined RoIs.
        """
        solver, started = self.recipe.solver, time.perf_counter()
        self.model.train()
        self.number = number
        rate = learning_rate(solver, number - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        passes = [[example] for example in batch] if solver.accumulate else [batch]
        numbers, statistics_seconds = RunningMeans(), 0.0
        choice = self._choose(batch) if solver.rank_first else None
        for i, examples in enumerate(passes):
            last = i == len(passes) - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                if choice is None:
                    numbers.add(self._pass(examples, len(passes)))
                else:
                    with replayed(cast(FastRCNN, self.detector), choice.keep[i]):
                        numbers.add(self._pass(examples, len(passes), batch, choice.trained_on))
            if statistics and (last or not choice):
                before = time.perf_counter()
                for prefix, recorder in self.recorders.items():
                    mined = self.whole.statistics(recorder)
                    numbers.add({f"{prefix}{name}": value for name, value in mined.items()})
                statistics_seconds += time.perf_counter() - before
        limit = solver.clip if solver.clip > 0 else math.inf
        norm = cast(
            Tensor,
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False),
        )
        if not self.scaled:  # a scaler skips such steps
            self._must_be_finite("gradient", norm, batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.shortlist:
            share_losses(self.shortlist, self.fabric)
        return {
            **numbers.means(),
            "grad_norm": float(norm),
            "lr": rate,
            "seconds": time.perf_counter() - started - statistics_seconds,
        }

    def _choose(self, batch: Sequence[Example]) -> Choice:
        """Chooses the RoIs of `batch` before the passes over its images."""
        mining.begin_step(self.recorder, self.detector, batch, self.number)
        with self.whole.step(batch, batch), self.fabric.autocast():
            return choose(cast(FastRCNN, self.detector), *self._inputs(batch))

    def _pass(
        self, examples: Sequence[Example], passes: int, batch: Sequence[Example] = (), trained_on: int | None = None
    ) -> dict[str, float]:
        """Computes losses and gradients of `examples`, one of `passes` that are averaged; returns the losses.

        `trained_on` RoIs of `batch` were chosen before.
        """
        if trained_on is None:
            mining.begin_step(self.recorder, self.detector, examples, self.number)
        with self.whole.step(examples, batch), fast_linear(self.detector):
            computed = self.model(*self._inputs(examples))
        losses = self.whole.weighted(computed, trained_on, passes)
        loss = torch.stack(list(losses.values())).sum()
        ranked = (recorder.losses.sum() for recorder in self.recorders.values() if recorder.losses is not None)
        self._must_be_finite("loss", sum(ranked, loss), examples)
        self.fabric.backward(loss / passes)
        return self.whole.mean({"loss": loss.item(), **{name: value.item() for name, value in losses.items()}})

    def rank(self, batch: list[Example]) -> None:
        """Makes a visit of the images of `batch` without training on them: a shortlist remembers their losses."""
        self.model.train()
        with torch.no_grad(), fast_linear(self.detector):
            self.model(*self._inputs(batch))

    def _inputs(self, examples: Sequence[Example]) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
        columns = [e.image for e in examples], [e.proposals for e in examples], [e.target for e in examples]
        moved: tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]] = self.fabric.to_device(columns)
        return moved

    def _must_be_finite(self, what: str, value: Tensor, examples: Sequence[Example]) -> None:
        # All processes agree, since one that stops alone would leave the others waiting for its gradient.
        number = 0 if value.isfinite() else first_of(self.fabric)
        highest = agreed(self.fabric, number)
        if not highest:
            return
        path = self.run / f"non-finite-{self.fabric.global_rank}.json"
        write_json(path, evidence(self.recorder, self.number, examples))
        if highest != number:
            raise SystemExit(2)  # another process reports it
        weights = self.recipe.model.weights
        check = "" if self.number > 1 or weights == "none" else f"check the initial weights, {weights}, "
        raise InputError(
            f"the {what} is not finite at step {self.number}, image {', '.join(e.id for e in examples)}: {check}"
            f"lower --solver.lr or set --solver.clip, and see the RoIs in {path}; the last checkpoint is kept"
        )
