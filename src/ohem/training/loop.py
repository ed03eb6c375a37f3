"""The training loop: SGD over mini-batches, on any device and number of processes, by Fabric.

Data order, flips, sampling and dropout are functions of (seed, step), so a resumed run is the run that never stopped.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ohem.config.schema import Recipe
from ohem.data.loader import (
    Example,
    Examples,
    Stream,
    TrainingExamples,
    TrainingPyramids,
    collate_list,
    describe_data_error,
    positions,
    seed_of,
)
from ohem.detection.detector import Detector
from ohem.detection.draw import draw_hardest
from ohem.errors import InputError
from ohem.kernels import choice
from ohem.kernels.fast_linear import kernels_of
from ohem.kernels.low_precision import is_exact, suited
from ohem.models.build import build_model, build_rpn_sampler, initialise
from ohem.processes import Stopped, collect_signals
from ohem.recorder import Recorder
from ohem.training import checkpoint
from ohem.training.distributed import Agreement, Fabric, Failed, describe, share_kernels
from ohem.training.hooks import Observer
from ohem.training.logs import mining
from ohem.training.logs.loggers import Loggers
from ohem.training.logs.metrics_log import MetricsLog, RunningMeans
from ohem.training.logs.progress import ProgressBar, print_next_steps
from ohem.training.step import TrainingStep


def train(recipe: Recipe, run: Path, examples: Examples, fabric: Fabric) -> None:
    """Trains `recipe` into the folder `run`, from its newest checkpoint if it has one.

    Args:
        recipe: with `data.classes` filled in.
        run: an existing folder for `metrics.csv`, checkpoints, snapshots and measurements.
        examples: the training images with their proposals.
        fabric: devices and processes.

    Raises:
        InputError: the loss is not finite, the number of processes does not divide the images of a step, or the run is
            of another detector, or has more steps already.
        Stopped: SIGTERM or SIGINT was received; the checkpoint is written.
    """
    solver = recipe.solver
    try:
        trainer = _make_trainer(recipe, run, examples, fabric)
    except InputError:
        if fabric.is_global_zero:
            raise
        raise SystemExit(2) from None  # the first process reports it
    if trainer.step == solver.steps and fabric.is_global_zero:
        print(f"{run} has all of its {solver.steps} steps already: give more --solver.steps to train on")
    if fabric.is_global_zero:
        _print_kernels(trainer)
    share_kernels(fabric)
    trainer.run_to(solver.steps)
    if fabric.is_global_zero:
        print_next_steps(run)


def _print_kernels(trainer: "Trainer") -> None:
    """Prints what was measured to be the fastest on this processor."""
    if line := kernels_of(trainer.detector):
        print(line, flush=True)
    if trainer.recipe.model.rescore_top:
        device = trainer.fabric.device
        reason = ", since no lower precision is faster on this processor" if is_exact(device) else ""
        print(f"all RoIs are ranked in {suited(device)}{reason}", flush=True)


def _make_trainer(recipe: Recipe, run: Path, examples: Examples, fabric: Fabric) -> "Trainer":
    """Returns the trainer at the step that the run is resumed from; raises `InputError` where that is impossible."""
    solver = recipe.solver
    if solver.images % fabric.world_size:
        raise InputError(
            f"--solver.images {solver.images} cannot be shared by {fabric.world_size} processes: choose a multiple"
        )
    trainer = Trainer(recipe, run, examples, fabric)
    if trainer.step > solver.steps:
        raise InputError(
            f"{run} is at step {trainer.step} already: give --solver.steps {trainer.step} or more, or a new folder"
        )
    return trainer


class Trainer:
    """The state of a run: how a step updates the detector, the number of steps, and what is logged."""

    def __init__(self, recipe: Recipe, run: Path, examples: Examples, fabric: Fabric) -> None:
        self.recipe, self.run, self.examples, self.fabric = recipe, run, examples, fabric
        self.recorder = mining.make_recorder(recipe, run)
        rpn_sampler = build_rpn_sampler(recipe.model)
        rpn_recorder = None if rpn_sampler is None else Recorder(rpn_sampler)
        recorders = {"": self.recorder, **({"rpn_": rpn_recorder} if rpn_recorder else {})}
        torch.manual_seed(seed_of(recipe.solver.seed, Stream.INITIAL))
        # In its precision before weights are restored: a checkpoint in float64 must not be rounded.
        model = fabric.strategy.precision.convert_module(build_model(recipe, self.recorder, rpn_recorder))
        assert isinstance(model, Detector)
        resumed = self._find_checkpoint()
        if resumed is None:
            initialise(model, examples, recipe)
        else:
            checkpoint.restore(model, resumed.state, run)
        self.detector: Detector = model
        mining.watch_classifier(self.recorder, model)
        self.update = TrainingStep(recipe, run, fabric, model, recorders)
        self.step = 0
        self.window = RunningMeans()
        self.log: MetricsLog | None = None
        self.loggers = Loggers(run, recipe)
        self._metrics: str | None = None
        if resumed is not None:
            self._restore(resumed.state)
        self._saved = self.step
        self._newest_is_whole = resumed is None or resumed.path.name == checkpoint.NAME

    def _find_checkpoint(self) -> checkpoint.Checkpoint | None:
        with warnings.catch_warnings():
            if not self.fabric.is_global_zero:  # the first process warns
                warnings.simplefilter("ignore")
            return checkpoint.find(self.run)

    def _restore(self, state: checkpoint.State) -> None:
        """Restores everything of a checkpoint except the weights of the model."""
        checkpoint.restore_optimizer(self.update.optimizer, state, self.run)
        if state["precision"]:  # empty where the run was trained in another precision
            try:
                self.fabric.strategy.precision.load_state_dict(state["precision"])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise InputError(
                    f"the checkpoint of {self.run} has a damaged scale of --run.precision: resume in another precision"
                ) from error
        self.step = state["step"]
        self.window = RunningMeans(**state["window"])
        self._metrics = state.get(checkpoint.METRICS)
        choice.restore(state.get(checkpoint.KERNELS, {}))
        if self.update.shortlist and checkpoint.SHORTLIST in state:
            self.update.shortlist.load_state_dict(state[checkpoint.SHORTLIST])
        mining.restore(self.recorder, state.get(checkpoint.MINING), self.fabric)

    def run_to(self, last: int) -> None:
        """Trains up to step `last`, and logs and saves at the steps that the recipe names.

        Raises:
            InputError: an image, the disk or a file of the run failed. The checkpoint of the step is written first.
            Stopped: a signal was received; the checkpoint is written.
        """
        main = self.fabric.is_global_zero
        bar = ProgressBar(self.step, last, self.recipe.solver.images, main)
        with collect_signals() as received, bar, ExitStack() as stack:
            agreement = Agreement(self.fabric, received)
            try:
                if main:
                    agreement.attempt(partial(self._open_logs, stack))
                agreement.check()
                self._run_steps(last, bar, agreement)
            except Failed as failed:
                error = self._save_after(failed.error, agreement)
            else:
                return
        try:
            raise error
        finally:
            # An error that refers to itself by its traceback would keep the model alive, and with it the threads that
            # connect the processes, until Python ends; then Python aborts.
            del error

    def _open_logs(self, stack: ExitStack) -> None:
        self.log = stack.enter_context(MetricsLog(self.run, self.step, self._metrics))
        stack.enter_context(self.loggers)
        if self.step < self.recipe.solver.steps:
            self.loggers.open(self.step)

    def _run_steps(self, last: int, bar: ProgressBar, agreement: Agreement) -> None:
        settings = self.recipe.run
        observer = Observer(self.recipe, self.run, self.examples, agreement, self.detector, bar.report)
        observer.drop_after(self.step)
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
                means, self.window = self.window.means(), RunningMeans()
                if self.log:
                    agreement.attempt(partial(self.log.write, {"step": self.step, **means}))
                    agreement.attempt(partial(self.loggers.log_numbers, means, self.step))
            if self.log and settings.pictures_every and self.step % settings.pictures_every == 0:
                agreement.attempt(partial(self._log_picture, batch))
            signum = agreement.check()
            if signum or self.step % settings.checkpoint_every == 0 or self.step == last:
                self.save(agreement)
            if signum:
                raise Stopped(signum, self.step)
            self._observe(observer, last, agreement)

    def _log_picture(self, batch: Sequence[Example]) -> None:
        count = self.recorder.rois.num_images if self.recorder.rois else 0  # of the last pass
        examples = batch[-count:][:4]  # they fit a screen
        images = [self.detector.network_image(example.image) for example in examples]
        picture = draw_hardest(self.recorder, images, [e.id for e in examples], self.recipe.data.classes)
        self.loggers.log_picture(picture, self.step)

    def save(self, agreement: Agreement) -> None:
        """Writes the checkpoint of the present step; raises `Failed` in all processes where that is impossible."""
        logged = mining.state_of(self.recorder, self.fabric)
        if self.fabric.is_global_zero:
            agreement.attempt(partial(self._write, logged))
        agreement.check()
        self._saved = self.step

    def _write(self, logged: dict[str, Any] | None) -> None:
        state = {
            "step": self.step,
            "window": {"sums": self.window.sums, "counts": self.window.counts},
            "model": self.detector.state_dict(),
            "optimizer": self.update.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            checkpoint.METRICS: self.log.text if self.log else self._metrics,
            checkpoint.KERNELS: choice.choices(),
            **({checkpoint.SHORTLIST: self.update.shortlist.state_dict()} if self.update.shortlist else {}),
            **({checkpoint.MINING: logged} if logged else {}),
        }
        checkpoint.save(self.run, state, keep_newest=self._newest_is_whole)
        self._newest_is_whole = True
        mining.save(self.recorder)

    def _save_after(self, error: BaseException, agreement: Agreement) -> BaseException:
        """Saves the trained weights; returns the exception to raise for `error`, with a sentence for the user."""
        said = describe(error)
        if self.step > self._saved:
            try:
                self.save(agreement)
            except Failed as second:
                again = describe(second.error)
                if not isinstance(error, SystemExit) and again != said:
                    return InputError(
                        f"{said}; the checkpoint of step {self.step} could not be written either ({again}): "
                        f"the run can be resumed from step {self._saved}"
                    )
        if isinstance(error, InputError | OSError):
            return InputError(f"{said}; repeat the command to resume from step {self._saved}" if self._saved else said)
        return error

    def batches(self, last: int) -> Iterator[list[Example]]:
        """Yields the mini-batches of this process from the present step up to step `last`, in order."""
        solver, fabric = self.recipe.solver, self.fabric
        positions_of_process = positions(self.step, last, solver.images, fabric.global_rank, fabric.world_size)
        config = self.recipe.data
        sequence = TrainingExamples(self.examples, seed=solver.seed, flips=config.flip, scales=config.scales)
        dataset = TrainingPyramids(sequence) if config.pyramid else sequence
        try:
            yield from DataLoader(
                dataset, batch_sampler=positions_of_process, collate_fn=collate_list, num_workers=config.workers
            )
        except (InputError, OSError, MemoryError, RuntimeError) as error:
            raise describe_data_error(error) from error

    def train_step(self, batch: list[Example], statistics: bool) -> dict[str, float]:
        """Updates the weights once with the next of `batches`, and returns numbers to log: see `TrainingStep`."""
        numbers = self.update(batch, self.step + 1, statistics)
        self.step += 1
        return numbers

    def _observe(self, observer: Observer, last: int, agreement: Agreement) -> None:
        if signum := observer(self.step, last):
            if self.step > self._saved:
                self.save(agreement)
            raise Stopped(signum, self.step)
