"""Where a training logs besides metrics.csv: TensorBoard, Weights & Biases and MLflow.

A resumed run logs no step twice. TensorBoard hides what it has after the step of the checkpoint, and gets it again.
The services keep what they have: RUN/loggers.json has the id of the run there and its last step, and no earlier step is
logged again. The numbers would be the same, since a resumed run is exact.
"""

import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

from torch import Tensor

from ohem.config.schema import LoggerName, Recipe
from ohem.config.validation import flatten_options
from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.io.json_files import write_json

NAME = "loggers.json"
TENSORBOARD = "tensorboard"
"""Folder in the folder of a run."""
PROJECT = "ohem"
"""Project of Weights & Biases, and experiment of MLflow, unless the environment names another."""

Options = Mapping[str, bool | int | float | str]


class Session(NamedTuple):
    """The run in a service, in RUN/loggers.json by the name of the logger."""

    id: str
    step: int
    """Last step that was logged."""


class Start(NamedTuple):
    """What a logger begins with."""

    run: Path
    options: Options
    step: int
    """Step from which the run is resumed; 0 for a new run."""
    run_id: str | None
    """Id of the run in the service, which goes on; None for a new one."""


class Logger(ABC):
    """A place for numbers and pictures by name and step. Every method may raise any exception."""

    run_id = ""
    """Id of the run in a service; empty if there is none."""

    @abstractmethod
    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Logs `numbers` by name."""

    @abstractmethod
    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        """Logs `picture`, uint8 (3, H, W), RGB."""

    @abstractmethod
    def close(self, done: bool) -> None:
        """Writes what is left; `done` is whether all steps were trained."""


class TensorBoard(Logger):
    """Event files in RUN/tensorboard."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        # Events that it has after the step of the checkpoint are hidden.
        self._writer = SummaryWriter(start.run / TENSORBOARD, purge_step=start.step + 1)
        # `SummaryWriter.add_hparams` would make a second run in a folder of its own.
        for summary in hparams(dict(start.options), {"train/loss": 0.0}):  # type: ignore[no-untyped-call]
            cast(Any, self._writer.file_writer).add_summary(summary)

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self._writer.add_image(name, picture, step)
        self._writer.flush()

    def close(self, done: bool) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """A run in Weights & Biases, with the name of the run folder. Its files are in RUN/wandb."""

    def __init__(self, start: Start) -> None:
        wandb = import_extra("wandb", "--run.loggers wandb")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.run.resolve().name,
            dir=start.run,
            id=start.run_id,
            resume="allow",
            settings=wandb.Settings(console="off"),  # the progress bar would fill its log
        )
        self.run_id = self._run.id
        self._run.config.update(start.options, allow_val_change=True)
        # W&B's own step counts calls, and refuses a step of an earlier time.
        self._run.define_metric("*", step_metric="step")

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self._run.log({name: self._image(picture.permute(1, 2, 0).numpy()), "step": step})

    def close(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


class MLflow(Logger):
    """A run in MLflow, with the name of the run folder, where MLFLOW_TRACKING_URI leads."""

    def __init__(self, start: Start) -> None:
        self._mlflow = mlflow = import_extra("mlflow", "--run.loggers mlflow")
        if start.run_id is None:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            self.run_id = mlflow.start_run(run_name=start.run.resolve().name).info.run_id
            mlflow.log_params(start.options)  # they cannot be changed later
        else:
            self.run_id = mlflow.start_run(run_id=start.run_id).info.run_id

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def log_picture(self, name: str, picture: Tensor, step: int) -> None:
        self._mlflow.log_image(picture.permute(1, 2, 0).numpy(), key=name, step=step, synchronous=True)

    def close(self, done: bool) -> None:
        self._mlflow.end_run("FINISHED" if done else "KILLED")


LOGGERS: Mapping[LoggerName, Callable[[Start], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Loggers:
    """The loggers of a run: none before `open`. One that fails gets no more, with a warning; the training goes on.

    Args:
        run: folder of the run.
        recipe: options `run.loggers` and `solver.steps`.
    """

    def __init__(self, run: Path, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self.step = 0
        self._loggers: dict[str, Logger] = {}
        self._sessions: dict[str, Session] = {}
        self._logged: dict[str, int] = {}

    def open(self, step: int) -> None:
        """Opens the loggers that the recipe names for a training that goes on from `step`.

        Raises:
            InputError: a logger cannot start, or RUN/loggers.json is damaged.
        """
        self.step = step
        names = [name for name in LOGGERS if name in self.recipe.run.loggers]
        self._sessions = _read(self.run / NAME) if names else {}
        for name in names:
            session = self._sessions.pop(name, None)
            if session and not step and not session.step:
                session = None  # nothing was logged there, and the recipe may be another
            run_id = session and session.id
            try:
                logger = LOGGERS[name](Start(self.run, _options(self.recipe), step, run_id))
            except Exception as error:
                again = f", or remove {self.run / NAME} to begin a new run there" if run_id else ""
                raise InputError(
                    f"--run.loggers {name} cannot start ({_first_line(error)}): correct its settings{again}, or leave "
                    "it out"
                ) from error
            self._loggers[name] = logger
            if logger.run_id:
                self._sessions[name] = session or Session(logger.run_id, 0)
                self._write()
        self._logged = {name: session.step for name, session in self._sessions.items()}

    def log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Logs `numbers`, with "train/" before their names; raises `OSError` if RUN/loggers.json cannot be written."""
        named = {f"train/{name}": number for name, number in numbers.items()}
        self._call(lambda logger: logger.log_numbers(named, step), step)
        self.step = step
        sessions = self._sessions.keys() & self._loggers.keys()
        for name in sessions:
            self._sessions[name] = Session(self._sessions[name].id, max(step, self._logged[name]))
        if sessions:
            self._write()

    def log_picture(self, picture: Tensor, step: int) -> None:
        """Logs `picture`, uint8 (3, H, W), of the hardest RoIs."""
        self._call(lambda logger: logger.log_picture("train/hardest", picture, step), step)

    def _call(self, action: Callable[[Logger], None], step: int) -> None:
        for name, logger in list(self._loggers.items()):
            if step <= self._logged.get(name, -1):
                continue
            try:
                action(logger)
            except Exception as error:  # noqa: BLE001  of any package
                del self._loggers[name]
                warnings.warn(
                    f"--run.loggers {name} failed at step {step} ({_first_line(error)}) and gets no more numbers "
                    "until the run is resumed; metrics.csv has all of them",
                    stacklevel=1,
                )

    def _write(self) -> None:
        write_json(self.run / NAME, {name: session._asdict() for name, session in self._sessions.items()})

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logged = {}
        self._call(lambda logger: logger.close(self.step >= self.recipe.solver.steps), self.step)
        self._loggers = {}


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raises `InputError` if the package of a logger is not installed."""
    for name in LOGGERS.keys() & set(names):
        import_extra(name, f"--run.loggers {name}")


def _options(recipe: Recipe) -> Options:
    """Returns the options that have a value, by their dotted names; several values are one text."""
    return {
        key: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in flatten_options(recipe)
        if value is not None
    }


def _read(path: Path) -> dict[str, Session]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Session(str(entry["id"]), int(entry["step"])) for name, entry in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and the loggers begin new runs") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
