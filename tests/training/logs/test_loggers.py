"""TensorBoard, Weights & Biases and MLflow get the rows of metrics.csv, each step once, and cannot stop a training."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ohem.config.methods import replace_options
from ohem.config.schema import Recipe
from ohem.errors import InputError
from ohem.training import checkpoint
from ohem.training.logs.loggers import NAME, TENSORBOARD, Loggers
from ohem.training.logs.metrics_log import read_metrics
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpoint.pt is missing")
EVERY_ROW = ["--run.log-every", 1, "--run.checkpoint-every", 2]
PICTURES = ["--run.pictures-every", 2]
SERVICES = ("wandb", "mlflow")


def train_with_a_lost_checkpoint(run: Path, data: Path, *options: object) -> None:
    """Trains 3 steps, loses the checkpoint of the third one, and trains from the second one to the fourth one."""
    assert ohem("train", run, *training(data, steps=3), *EVERY_ROW, *options).code == 0
    (run / checkpoint.NAME).unlink()
    assert ohem("train", run, *training(data, steps=4), *EVERY_ROW, *options).code == 0


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run of 4 steps that was never stopped, with metrics.csv alone."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    assert ohem("train", run, *training(data, steps=4), *EVERY_ROW).code == 0
    return run


@pytest.fixture(scope="module")
def resumed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the same run with TensorBoard and pictures, resumed from an earlier step than it had logged."""
    run = tmp_path_factory.mktemp("runs") / "resumed"
    train_with_a_lost_checkpoint(run, data, *PICTURES, "--run.loggers", "csv", "tensorboard")
    return run


@pytest.fixture(scope="module")
def events(resumed: Path) -> EventAccumulator:
    return EventAccumulator(str(resumed / TENSORBOARD)).Reload()


def assert_same(run: Path, other: Path) -> None:
    one, two = checkpoint.load(run), checkpoint.load(other)
    assert one is not None
    assert two is not None
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())
    rows = [[{**row, "seconds": ""} for row in read_metrics(item)] for item in (run, other)]
    assert rows[0] == rows[1]


# ---------------------------------------------------------------------------------------------------- TensorBoard


def test_training_is_the_same_without_loggers_and_pictures(plain: Path, resumed: Path) -> None:
    assert_same(plain, resumed)
    assert not (plain / TENSORBOARD).exists()
    assert not (resumed / NAME).exists()  # TensorBoard has no id to remember


def test_tensorboard_has_every_number_of_metrics_csv_once(resumed: Path, events: EventAccumulator) -> None:
    rows = read_metrics(resumed)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in rows[0]} - {"train/step"}
    for tag in events.Tags()["scalars"]:
        actual = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in actual] == [1, 2, 3, 4]
        assert [value for _, value in actual] == pytest.approx([float(row[tag[6:]]) for row in rows], rel=1e-5)


def test_the_files_of_tensorboard_do_have_a_step_twice(resumed: Path) -> None:
    """Checks that the test above needs the purge: both trainings logged step 3."""
    files = sorted((resumed / TENSORBOARD).iterdir())
    steps = [
        event.step
        for file in files
        for event in EventFileLoader(str(file)).Load()
        if any(value.tag == "train/loss" for value in event.summary.value)
    ]
    assert steps == [1, 2, 3, 3, 4]


def test_tensorboard_has_the_recipe(events: EventAccumulator) -> None:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    options = HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["solver.images"].number_value == 2
    assert options["data.classes"].string_value == "blue red"
    assert "sampler.pressure" not in options  # it has no value


def test_tensorboard_has_pictures_of_the_two_images(events: EventAccumulator) -> None:
    pictures = events.Images("train/hardest")
    assert [picture.step for picture in pictures] == [2, 4]
    assert all(picture.width > 2 * 80 and picture.height > 64 for picture in pictures)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_an_older_run_is_resumed_with_loggers(data: Path, plain: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(plain, tmp_path / "run"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["run"]["loggers"], recipe["run"]["pictures_every"], recipe["checksum"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = [*training(data, steps=5), *EVERY_ROW, "--run.loggers", "tensorboard"]
    assert f"tensorboard --logdir {run}" in ohem("train", run, *options).out
    assert [row["step"] for row in read_metrics(run)] == ["1", "2", "3", "4", "5"]
    losses = EventAccumulator(str(run / TENSORBOARD)).Reload().Scalars("train/loss")
    assert [event.step for event in losses] == [5]
    files = sorted((run / TENSORBOARD).iterdir())
    assert ohem("train", run, *options).code == 0  # no step is left
    assert sorted((run / TENSORBOARD).iterdir()) == files


# ------------------------------------------------------------------------------------------------------- services


class Service:
    """What both fake services record: numbers and pictures by run, and how runs were begun and ended."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, str]]] = {}
        self.begun: list[tuple[str, str | None]] = []
        self.ended: list[Any] = []
        self.options: dict[str, Any] = {}
        self.fault: tuple[int, str] | None = None

    def begin(self, run_id: str | None, name: str | None) -> str:
        run_id = run_id or f"run-{len(self.runs) + 1}"
        self.begun.append((run_id, name))
        self.runs.setdefault(run_id, [])
        return run_id

    def log(self, step: int, names: list[str]) -> None:
        if self.fault and self.fault[0] == step and self.fault[1] in names:
            raise ConnectionError("the network is lost\nTraceback of the client")
        self.runs[self.begun[-1][0]] += [(step, name) for name in names]

    def steps(self, name: str) -> dict[str, list[int]]:
        return {run: [step for step, other in logged if other == name] for run, logged in self.runs.items()}


class WandbRun:
    def __init__(self, service: Service, run_id: str) -> None:
        self.service, self.id = service, run_id
        self.config = SimpleNamespace(update=lambda options, allow_val_change: service.options.update(options))
        self.step_of: dict[str, str] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        self.step_of[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        assert self.step_of == {"*": "step"}
        self.service.log(values["step"], [name for name in values if name != "step"])

    def finish(self, exit_code: int) -> None:
        self.service.ended.append(exit_code)


def fake_wandb(service: Service) -> SimpleNamespace:
    def init(*, project: str, name: str, dir: Path, id: str | None, resume: str, settings: object) -> WandbRun:  # noqa: A002
        assert (project, resume) == ("ohem", "allow")
        assert dir.is_dir()
        return WandbRun(service, service.begin(id, name))

    def image(pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        return pixels

    return SimpleNamespace(init=init, Image=image, Settings=lambda console: console)


def fake_mlflow(service: Service) -> SimpleNamespace:
    def start_run(*, run_id: str | None = None, run_name: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=service.begin(run_id, run_name)))

    def log_image(pixels: np.ndarray, *, key: str, step: int, synchronous: bool) -> None:
        assert synchronous
        assert pixels.shape[2] == 3
        service.log(step, [key])

    return SimpleNamespace(
        set_experiment=lambda name: None,
        start_run=start_run,
        log_params=lambda options: service.options.update(options),
        log_metrics=lambda numbers, step: service.log(step, list(numbers)),
        log_image=log_image,
        end_run=lambda status: service.ended.append(status),
    )


FAKES: dict[str, Callable[[Service], SimpleNamespace]] = {"wandb": fake_wandb, "mlflow": fake_mlflow}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    """Replaces the packages of the services by fakes, and returns what these record."""
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    made = {name: Service() for name in SERVICES}
    for name, service in made.items():
        monkeypatch.setitem(sys.modules, name, FAKES[name](service))
    return made


def loggers_of(run: Path, *names: str) -> Loggers:
    return Loggers(run, replace_options(Recipe(), run={"loggers": names}, solver={"steps": 9}))


def test_services_get_every_step_once_in_one_run(
    data: Path, plain: Path, tmp_path: Path, services: dict[str, Service]
) -> None:
    run = tmp_path / "run"
    train_with_a_lost_checkpoint(run, data, *PICTURES, "--run.loggers", *SERVICES)
    assert_same(run, plain)
    for service in services.values():
        assert service.steps("train/loss") == service.steps("train/seconds") == {"run-1": [1, 2, 3, 4]}
        assert service.steps("train/hardest") == {"run-1": [2, 4]}
        assert service.begun[0] == ("run-1", "run")
        assert [run_id for run_id, _ in service.begun] == ["run-1", "run-1"]
        assert service.options["sampler.name"] == "ohem"
    assert services["wandb"].ended == [0, 0]
    assert services["mlflow"].ended == ["FINISHED", "FINISHED"]
    assert services["wandb"].options["solver.steps"] == 4
    assert json.loads((run / NAME).read_text()) == {name: {"id": "run-1", "step": 4} for name in SERVICES}


def test_a_service_that_fails_costs_a_warning_and_no_step(
    data: Path, plain: Path, tmp_path: Path, services: dict[str, Service]
) -> None:
    run, wandb, mlflow = tmp_path / "run", services["wandb"], services["mlflow"]
    wandb.fault = 3, "train/loss"
    with pytest.warns(UserWarning, match="failed at step 3") as warned:
        assert ohem("train", run, *training(data, steps=4), *EVERY_ROW, "--run.loggers", *SERVICES).code == 0
    assert [str(warning.message) for warning in warned] == [
        "--run.loggers wandb failed at step 3 (the network is lost) and gets no more numbers until the run is resumed; "
        "metrics.csv has all of them"
    ]
    assert_same(run, plain)
    assert (wandb.steps("train/loss"), wandb.ended) == ({"run-1": [1, 2]}, [])
    assert (mlflow.steps("train/loss"), mlflow.ended) == ({"run-1": [1, 2, 3, 4]}, ["FINISHED"])
    sessions = json.loads((run / NAME).read_text())
    assert [sessions[name]["step"] for name in SERVICES] == [2, 4]


def test_a_picture_or_the_end_that_fails_costs_a_warning(tmp_path: Path, services: dict[str, Service]) -> None:
    services["wandb"].fault = 1, "train/hardest"
    services["mlflow"].ended = None  # type: ignore[assignment]
    loggers = loggers_of(tmp_path, *SERVICES)
    loggers.open(0)
    with pytest.warns(UserWarning, match="wandb failed at step 1"):
        loggers.log_picture(torch.zeros(3, 4, 5, dtype=torch.uint8), 1)
    with pytest.warns(UserWarning, match="mlflow failed at step 0"):
        loggers.__exit__(None, None, None)


def test_a_training_that_is_stopped_is_not_done(tmp_path: Path, services: dict[str, Service]) -> None:
    with loggers_of(tmp_path, *SERVICES) as loggers:
        loggers.open(0)
        loggers.log_numbers({"loss": 1.0}, 5)
    assert (services["wandb"].ended, services["mlflow"].ended) == ([1], ["KILLED"])


def test_where_nothing_was_logged_a_new_run_begins(tmp_path: Path, services: dict[str, Service]) -> None:
    for step in (0, 0, 3):  # step 3 was trained without a row
        with loggers_of(tmp_path, "wandb") as loggers:
            loggers.open(step)
    assert [run_id for run_id, _ in services["wandb"].begun] == ["run-1", "run-2", "run-2"]


def test_a_logger_that_was_left_out_for_a_while(tmp_path: Path, services: dict[str, Service]) -> None:
    for names, step in ((SERVICES, 0), (("mlflow",), 2), (SERVICES, 1)):
        with loggers_of(tmp_path, *names) as loggers:
            loggers.open(step)
            for number in range(step + 1, step + 3):
                loggers.log_numbers({"loss": 1.0}, number)
    assert services["wandb"].steps("train/loss") == {"run-1": [1, 2, 3]}
    assert services["mlflow"].steps("train/loss") == {"run-1": [1, 2, 3, 4]}


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tensorboard", 'TensorBoard: pip install "ohem[tensorboard]"'),
        ("wandb", "Weights & Biases: pip install wandb"),
        ("mlflow", "MLflow: pip install mlflow"),
    ],
)
def test_a_package_that_is_missing(
    name: str, remedy: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    line = ["train", tmp_path / "run", *training(data), "--run.loggers", name]
    assert sentence(ohem(*line)) == f"--run.loggers {name} needs {remedy}"
    assert not (tmp_path / "run").exists()


def test_a_service_that_cannot_start(data: Path, tmp_path: Path, services: dict[str, Service]) -> None:
    sys.modules["mlflow"].set_experiment = lambda name: 1 / 0  # type: ignore[attr-defined]
    text = sentence(ohem("train", tmp_path / "run", *training(data), "--run.loggers", *SERVICES))
    assert text == "--run.loggers mlflow cannot start (division by zero): correct its settings, or leave it out"
    assert services["wandb"].ended == [1]  # the other one was ended


def test_a_run_that_the_service_has_lost(tmp_path: Path, services: dict[str, Service]) -> None:
    (tmp_path / NAME).write_text(json.dumps({"mlflow": {"id": "gone", "step": 3}}))
    sys.modules["mlflow"].start_run = lambda run_id: services[run_id]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"mlflow cannot start \('gone'\).* remove .*loggers.json to begin a new run"):
        loggers_of(tmp_path, "mlflow").open(3)


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 3}', '{"wandb": {"id": "a"}}'])
def test_a_damaged_list_of_runs(content: str, tmp_path: Path, services: dict[str, Service]) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(InputError, match=r"loggers.json is damaged \(.*\): remove it, and the loggers begin new runs"):
        loggers_of(tmp_path, "wandb").open(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run.pictures-every", 5], "needs a logger that keeps pictures: add --run.loggers tensorboard"),
        (
            ["--recipe", "ssdlite320-mobilenet-v3-large", "--run.pictures-every", 5, "--run.loggers", "tensorboard"],
            "--sampler.name builtin mines none: leave out the pictures",
        ),
        (["--run.loggers", "comet"], 'Choose from: "csv", "tensorboard", "wandb", "mlflow"'),
    ],
)
def test_options_that_do_not_fit(options: list[object], message: str, data: Path, tmp_path: Path) -> None:
    given = training(data)[2 if "--recipe" in options else 0 :]
    assert message in sentence(ohem("train", tmp_path / "run", *given, *options))
    assert not (tmp_path / "run").exists()
