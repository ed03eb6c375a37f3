"""The training loop: SGD over mini-batches, on any device and number of processes, by Fabric.

Data order, flips, sampling and dropout are functions of (seed, step), so a resumed run is the run that never stopped.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from ohem.data.loader import Example, Examples, Stream, TrainingExamples, as_list, positions, seed_of
from ohem.detection.detector import Detector
from ohem.errors import InputError
from ohem.files import replacing
from ohem.layers import fast_linear
from ohem.recording import Recorder
from ohem.training import checkpoint
from ohem.training.agreement import Agreement, Failed, describe, first_of
from ohem.training.build import build_optimizer, build_sampler, learning_rate
from ohem.training.config import Recipe
from ohem.training.detectors import build_model, initialise
from ohem.training.launch import agreed
from ohem.training.metrics import MetricsLog, ProgressBar, Window
from ohem.training.observe import Observer
from ohem.training.signals import Stopped, collect_signals


def train(recipe: Recipe, run: Path, examples: Examples, fabric: Fabric) -> None:
    """Trains `recipe` into the folder `run`, from its newest checkpoint if it has one.

    Args:
        recipe: with `data.classes` filled in.
        run: an existing folder; gets `metrics.csv`, the checkpoints, and what the recipe asks for besides.
        examples: the training images with their proposals.

    Raises:
        InputError: the loss is not finite, the number of processes does not divide the images of a step, or the run is
            of another detector, or further than it is to go.
        Stopped: SIGTERM or SIGINT came; the checkpoint is written.
    """
    solver = recipe.solver
    try:
        trainer = _opened(recipe, run, examples, fabric)
    except InputError:
        if fabric.is_global_zero:
            raise
        raise SystemExit(2) from None  # the first process says it
    if trainer.step == solver.steps and fabric.is_global_zero:
        print(f"{run} has done its {solver.steps} steps: there is nothing left to train")
    trainer.run_to(solver.steps)


def _opened(recipe: Recipe, run: Path, examples: Examples, fabric: Fabric) -> "Trainer":
    """The trainer at the step that the run goes on from; raises InputError where it cannot."""
    solver = recipe.solver
    if solver.images % fabric.world_size:
        raise InputError(
            f"--solver.images {solver.images} cannot be shared by {fabric.world_size} processes: choose a multiple"
        )
    if recipe.model.detector == "ssdlite" and solver.images == fabric.world_size:
        raise InputError("the batch norm of ssdlite needs 2 or more images in each process: raise --solver.images")
    trainer = Trainer(recipe, run, examples, fabric)
    if trainer.step > solver.steps:
        raise InputError(
            f"{run} is at step {trainer.step} already: give --solver.steps {trainer.step} or more, or another folder"
        )
    return trainer


class Trainer:
    """The state of a run: model, optimizer and step."""

    def __init__(self, recipe: Recipe, run: Path, examples: Examples, fabric: Fabric) -> None:
        self.recipe, self.run, self.examples, self.fabric = recipe, run, examples, fabric
        self.recorder = Recorder(build_sampler(recipe.sampler))
        torch.manual_seed(seed_of(recipe.solver.seed, Stream.INITIAL))
        model = build_model(recipe, self.recorder)
        found = self._find()
        if found is None:
            initialise(model, examples, recipe)
        else:
            checkpoint.restore(model, found.state, run)
        self.detector: Detector = model
        # One pass over the weights in place of several; but Fabric cannot clip what a scaler has yet to divide.
        self.scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self.model, self.optimizer = fabric.setup(model, build_optimizer(model, recipe.solver, fused=not self.scaled))
        self.step = 0
        self.window = Window()
        self.log: MetricsLog | None = None
        self._metrics: str | None = None
        if found is not None:
            self._restore(found.state)
        self._saved = self.step
        self._newest_is_whole = found is None or found.path.name == checkpoint.NAME

    def _find(self) -> checkpoint.Found | None:
        with warnings.catch_warnings():
            if not self.fabric.is_global_zero:  # the first process says it
                warnings.simplefilter("ignore")
            return checkpoint.find(self.run)

    def _restore(self, state: checkpoint.State) -> None:
        """All of a checkpoint but the weights of the model."""
        checkpoint.restore_optimizer(self.optimizer, state, self.run)
        if state["precision"]:  # none from a run that went on in another precision
            try:
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(
                    f"the checkpoint of {self.run} has a damaged scale of --run.precision: go on in another precision"
                ) from error
        self.step = state["step"]
        self.window = Window(**state["window"])
        self._metrics = state.get(checkpoint.METRICS)

    def run_to(self, last: int) -> None:
        """Trains up to step `last`, logging and saving as the recipe says.

        Raises:
            InputError: a picture, the disk or a file of the run failed. The checkpoint of the step is written first.
            Stopped: a signal came; the checkpoint is written.
        """
        main = self.fabric.is_global_zero
        bar = ProgressBar(self.step, last, self.recipe.solver.images, main)
        with collect_signals() as received, bar, ExitStack() as stack:
            agreement = Agreement(self.fabric, received)
            try:
                if main:
                    self.log = agreement.attempt(partial(MetricsLog, self.run, self.step, self._metrics))
                agreement.check()
                if self.log:
                    stack.enter_context(self.log)
                self._run_steps(last, bar, agreement)
            except Failed as failed:
                error = self._save_after(failed.error, agreement)
            else:
                return
        try:
            raise error
        finally:
            # What refers to itself by its traceback would keep the model, and with it threads that connect the
            # processes, alive until Python ends, which then aborts.
            del error

    def _run_steps(self, last: int, bar: ProgressBar, agreement: Agreement) -> None:
        settings = self.recipe.run
        observer = Observer(self.recipe, self.run, self.examples, agreement, self.detector, bar.tell)
        observer.forget_after(self.step)
        self._observe(observer, last, agreement)
        batches = self.batches(last)
        while self.step < last:
            batch = agreement.attempt(partial(next, batches))
            agreement.check()
            assert batch is not None
            logged = (self.step + 1) % settings.log_every == 0 or self.step + 1 == last
            self.window.add(self.train_step(batch, logged))
            bar.update(self.step, self.window.last["loss"], self.window.last["lr"])
            if logged:
                if self.log:
                    agreement.attempt(partial(self.log.write, {"step": self.step, **self.window.means()}))
                self.window = Window()
            signum = agreement.check()
            if signum or self.step % settings.checkpoint_every == 0 or self.step == last:
                self.save(agreement)
            if signum:
                raise Stopped(signum, self.step)
            self._observe(observer, last, agreement)

    def save(self, agreement: Agreement) -> None:
        """Writes the checkpoint of the present step; raises `Failed` in all processes where it cannot be written."""
        if self.fabric.is_global_zero:
            agreement.attempt(self._write)
        agreement.check()
        self._saved = self.step

    def _write(self) -> None:
        state = {
            "step": self.step,
            "window": {"sums": self.window.sums, "counts": self.window.counts},
            "model": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            checkpoint.METRICS: self.log.text if self.log else self._metrics,
        }
        checkpoint.save(self.run, state, keep_newest=self._newest_is_whole)
        self._newest_is_whole = True

    def _save_after(self, error: BaseException, agreement: Agreement) -> BaseException:
        """Saves what was trained; returns what to raise for `error`, a sentence where a person can act on it."""
        said = describe(error)
        if self.step > self._saved:
            try:
                self.save(agreement)
            except Failed as second:
                again = describe(second.error)
                if not isinstance(error, SystemExit) and again != said:
                    return InputError(
                        f"{said}; and the checkpoint of step {self.step} could not be written ({again}): "
                        f"the run goes on from step {self._saved}"
                    )
        if isinstance(error, InputError | OSError):
            return InputError(f"{said}; the same line goes on from step {self._saved}" if self._saved else said)
        return error

    def batches(self, last: int) -> Iterator[list[Example]]:
        """The mini-batches of this process from the present step up to step `last`, in order."""
        solver, fabric = self.recipe.solver, self.fabric
        shown = positions(self.step, last, solver.images, fabric.global_rank, fabric.world_size)
        config = self.recipe.data
        sequence = TrainingExamples(self.examples, seed=solver.seed, flips=config.flip, scales=config.scales)
        workers = config.workers
        try:
            yield from DataLoader(sequence, batch_sampler=shown, collate_fn=as_list, num_workers=workers)
        except (InputError, OSError, MemoryError, RuntimeError) as error:
            raise _of_data(error) from error

    def train_step(self, batch: list[Example], statistics: bool) -> dict[str, float]:
        """One update of the weights by the next of `batches`; numbers to log, the mined set's only if `statistics`."""
        solver, started = self.recipe.solver, time.perf_counter()
        self.model.train()
        rate = learning_rate(solver, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        passes = [[example] for example in batch] if solver.accumulate else [batch]
        numbers, looked = Window(), 0.0
        for i, examples in enumerate(passes):
            with self.fabric.no_backward_sync(self.model, enabled=i < len(passes) - 1):
                numbers.add(self._pass(examples, len(passes)))
            if statistics:
                before = time.perf_counter()
                numbers.add(self.recorder.statistics())
                looked += time.perf_counter() - before
        limit = solver.clip if solver.clip > 0 else math.inf
        norm = cast(
            Tensor,
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False),
        )
        if not self.scaled:  # a scaler skips such steps
            self._must_be_finite("gradient", norm, batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {
            **numbers.means(),
            "grad_norm": float(norm),
            "lr": rate,
            "seconds": time.perf_counter() - started - looked,
        }

    def _pass(self, examples: Sequence[Example], passes: int) -> dict[str, float]:
        """Forward and backward of `examples`, one of `passes` whose gradients are averaged; its losses."""
        torch.manual_seed(seed_of(self.recipe.solver.seed, Stream.STEP, examples[0].position))
        with fast_linear(self.detector):
            losses: dict[str, Tensor] = self.model(*self._inputs(examples))
        loss = torch.stack(list(losses.values())).sum()
        ranked = self.recorder.losses
        self._must_be_finite("loss", loss if ranked is None else loss + ranked.sum(), examples)
        self.fabric.backward(loss / passes)
        return {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}

    def _inputs(self, examples: Sequence[Example]) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
        columns = [e.image for e in examples], [e.proposals for e in examples], [e.target for e in examples]
        moved: tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]] = self.fabric.to_device(columns)
        return moved

    def _must_be_finite(self, what: str, value: Tensor, examples: Sequence[Example]) -> None:
        # Agreed, since a process that stops alone would leave the others waiting for its gradient.
        number = 0 if value.isfinite() else first_of(self.fabric)
        highest = agreed(self.fabric, number)
        if not highest:
            return
        path = self.run / f"non-finite-{self.fabric.global_rank}.json"
        with replacing(path) as beside:
            beside.write_text(json.dumps(self._evidence(examples)) + "\n")
        if highest != number:
            raise SystemExit(2)  # another process says it
        weights = self.recipe.model.weights
        check = "" if self.step or weights == "none" else f"check the initial weights, {weights}, "
        raise InputError(
            f"the {what} is not finite at step {self.step + 1}, image {', '.join(e.id for e in examples)}: {check}"
            f"lower --solver.lr or set --solver.clip, and look at the RoIs in {path}; the last checkpoint is kept"
        )

    def _evidence(self, examples: Sequence[Example]) -> dict[str, object]:
        """The images and RoIs of a pass whose loss is not finite, for JSON; boxes in pixels of the resized image."""
        record = self.recorder
        rois = (
            []
            if record.rois is None
            else torch.cat(
                [record.rois.images[:, None], record.rois.labels[:, None], record.rois.boxes], dim=1
            ).tolist()
        )
        return {
            "step": self.step + 1,
            "images": [e.id for e in examples],
            "scales": [e.scale for e in examples],
            "columns": ["image", "label", "x1", "y1", "x2", "y2"],
            "rois": rois,
            "chosen": [] if record.chosen is None else record.chosen.tolist(),
            "losses": [] if record.losses is None else [str(value) for value in record.losses.tolist()],
        }

    def _observe(self, observer: Observer, last: int, agreement: Agreement) -> None:
        if signum := observer(self.step, last):
            if self.step > self._saved:
                self.save(agreement)
            raise Stopped(signum, self.step)


def _of_data(error: Exception) -> Exception:
    """A sentence for what the loader raised; a worker process sends its whole traceback as the message."""
    said = str(error).strip().splitlines() or [""]
    if isinstance(error, InputError):
        return InputError(said[-1].removeprefix("ohem.errors.InputError: "))
    if isinstance(error, OSError):
        return error if error.errno is not None else InputError(f"an image cannot be read ({said[-1]}): restore it")
    if isinstance(error, MemoryError) or "DataLoader worker (pid" in said[0]:
        return InputError(
            f"the memory is not enough for the images ({said[-1] or 'MemoryError'}): lower --data.workers or "
            "--solver.images, or leave out the largest images"
        )
    return error
