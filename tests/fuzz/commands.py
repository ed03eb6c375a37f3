"""The commands that read files, run in this process, and their results in a form that can be compared."""

import csv
import hashlib
import importlib
import json
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ohem.detection.backbones.base import Pretrained
from ohem.detection.weights import load_weights
from ohem.errors import InputError
from ohem.evaluation.report import DIGEST
from tests.detection.toy_backbone import TOY_CAFFE, toy
from tests.helpers.command_line import ohem
from tests.helpers.toy_data import training, training_on

Outcome = dict[str, Any]
CHECKPOINT = ("step", "window", "model", "optimizer", "precision")
EVERY = [
    *["--run.log-every", 1, "--run.checkpoint-every", 2, "--run.snapshot-every", 2, "--run.loss-every", 2],
    *["--test.score", 0.01],
]


@dataclass
class Result:
    """Holds the exit status and the output of a command."""

    code: int = 0
    out: str = ""
    err: str = ""
    warned: list[str] = field(default_factory=list)
    trace: str = ""
    """Of the exception that reached the top."""
    outcome: Outcome = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """Holds a command line, run in the folder of a world, and the files that it writes there."""

    arguments: Callable[[Path], Sequence[object]]
    outcome: Callable[[Path], Outcome]

    def __call__(self, world: Path) -> Result:
        """Runs the command. No exception passes, except those that end this process."""
        result = Result()
        with warnings.catch_warnings(record=True) as caught, children_in_this_process():
            warnings.simplefilter("always")
            try:
                arguments = self.arguments(world)
                result.code, result.out, result.err = _load_caffe(world) if arguments == CAFFE else ohem(*arguments)
            except Exception:  # noqa: BLE001  the harness is there to catch it
                result.code, result.trace = 1, traceback.format_exc()
        result.warned = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
        if result.code == 0:
            try:
                result.outcome = self.outcome(world)
            except Exception as error:  # noqa: BLE001  what was left cannot be read, which is an outcome too
                result.outcome = {"unreadable": f"{type(error).__name__}: {error}"}
        return result


# Outcomes


def without_seconds(value: Any) -> Any:
    """Returns JSON without the measured seconds, and without the digest of all of it."""
    if isinstance(value, Mapping):
        kept = (item for item in value.items() if "seconds" not in str(item[0]) and item[0] != DIGEST)
        return {key: without_seconds(item) for key, item in kept}
    return [without_seconds(item) for item in value] if isinstance(value, list | tuple) else value


def digest(value: Any) -> Any:
    """Returns nested values with a digest in place of each tensor."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(plain).hexdigest()}"
    if isinstance(value, Mapping):
        return {str(key): digest(item) for key, item in value.items()}
    return [digest(item) for item in value] if isinstance(value, list | tuple) else value


def checkpoint_of(path: Path) -> Outcome:
    """Returns weights, optimizer and step."""
    state = torch.load(path, weights_only=True)
    return {key: without_seconds(digest(state.get(key))) for key in CHECKPOINT}


def rows_of(path: Path) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv without the seconds."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def _json(path: Path) -> Any:
    return without_seconds(json.loads(path.read_text()))


def _trained(run: Path) -> Outcome:
    """Returns what `ohem train` writes, without the files of the run folder that it does not read."""
    outcome: Outcome = {"checkpoint": checkpoint_of(run / "checkpoint.pt"), "metrics": rows_of(run / "metrics.csv")}
    if (run / "loss_all.csv").exists():
        outcome["loss_all"] = _losses(run)
    for path in run.glob("snapshots/step-0000006*"):
        outcome[path.name] = digest(load_file(path))
    return outcome


def _detected(out: Path) -> Outcome:
    entries = [{key: item for key, item in entry.items() if key != "image"} for entry in _json(out / "detections.json")]
    return {"detections": entries, **{path.name: path.read_bytes() for path in out.glob("*.jpg")}}


def _losses(run: Path) -> Outcome:
    with (run / "loss_all.csv").open(newline="") as file:
        return {"rows": sorted((row["step"], row["rois"], row["loss"]) for row in csv.DictReader(file))}


def _compared(out: Path) -> Outcome:
    reports = {f"{path.parent.name}/{path.name}": _json(path) for path in out.glob("*/eval*.json")}
    return {"compare": [_json(path) for path in sorted(out.glob("*.json"))], **reports}


def _proposed(data: Path) -> Outcome:
    return {path.name: boxes_by_image(path) for path in sorted(data.glob("Proposals/*.safetensors"))}


def boxes_by_image(path: Path) -> dict[str, Any]:
    """Returns the tensors of a cache of proposals, without those about the files of the images."""
    return {name: digest(value) for name, value in load_file(path).items() if name in ("boxes", "offsets")}


# Commands


def on_toy(data: Path, steps: int) -> list[object]:
    """Returns options of `ohem train` for every kind of file that a run can have."""
    return [*training(data, steps=steps), *EVERY]


def on_coco(world: Path, steps: int) -> list[object]:
    """Returns the same options for the data in COCO's format."""
    sources = [f"{world / 'coco' / split}.json:{world / 'coco' / 'images'}" for split in ("train", "test")]
    return [*training_on(*sources, steps=steps), *EVERY]


def on_yolo(world: Path) -> list[object]:
    """Returns the same options for the data in YOLO layout, with negatives."""
    sources = [f"{world / 'yolo/data.yaml'}:{split}" for split in ("train", "val")]
    return [*training_on(*sources, steps=2), *EVERY, "--data.negatives", world / "negatives"]


def compare_line(world: Path) -> list[object]:
    """Returns a command that compares two methods with one step and one seed."""
    data = world / "ready"
    return [
        *[
            "compare",
            world / "compare",
            "--recipe",
            "demo-frcn",
            "--methods",
            "frcn",
            "ohem",
            "--seeds",
            1,
            "--jobs",
            2,
        ],
        *["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--data.short", 64, "--data.long", 80],
        *["--solver.steps", 3, "--run.accelerator", "cpu", "--proposals.jobs", 1, "--run.log-every", 1],
        *["--test.score", 0.01],
    ]


def reproduce_line(world: Path) -> list[object]:
    """Returns a command for a table of the paper with four rows, each trained for a step."""
    data = world / "ready"
    return [
        *["reproduce", "table3", "--small", "--out", world / "table", "--jobs", 2],
        *["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--data.short", 64, "--data.long", 80],
        *["--model.backbone", "tiny", "--model.weights", "none", "--solver.steps", 1, "--run.accelerator", "cpu"],
        *["--proposals.jobs", 1],
    ]


def _train(data: str, *more: str) -> Command:
    """Returns a command that trains a new run; `more` are options and names of files in the world."""
    options = lambda world: [world / word if not word.startswith("--") else word for word in more]  # noqa: E731
    return Command(lambda world: ["train", world / "new", *on_toy(world / data, 2), *options(world)], _of("new"))


def _of(run: str, outcome: Callable[[Path], Outcome] = _trained) -> Callable[[Path], Outcome]:
    return lambda world: outcome(world / run)


def _of_run(*arguments: str, then: Callable[[Path], Outcome], run: str = "run") -> Command:
    return Command(lambda world: [arguments[0], world / run, *arguments[1:]], then)


REPORT = "eval.json"
CAFFE = ["caffe"]
COMMANDS: dict[str, Command] = {
    "train": _train("voc"),
    "train on cached": _train("ready"),
    "train --config": _train("ready", "--config", "config.yaml"),
    "train on .mat": _train("voc", "--proposals.files", "boxes.mat"),
    "train on own boxes": _train(
        "voc", "--proposals.files", "boxes/abc.json", "boxes/de.npz", "boxes/fgh.safetensors"
    ),
    "train on regions": _train("ready", "--data.negatives", "hard/hard.json"),
    "hard on detections": Command(
        lambda world: [
            *["hard", "--detections", world / "detections.json", "--data", f"{world / 'ready'}:train", "--draw", 4],
            *["--out", world / "hard"],
        ],
        lambda world: {"regions": _json(world / "hard/hard.json")["regions"]},
    ),
    "audit on detections": Command(
        lambda world: [
            *["audit", f"{world / 'ready'}:train", "--detections", world / "detections.json", "--pictures", 2],
            *["--out", world / "audit"],
        ],
        lambda world: {"suspects": _json(world / "audit/audit.json")["suspects"]},
    ),
    "audit --apply": Command(
        lambda world: ["audit", "--apply", world / "decisions.json", "--out", world / "corrected"],
        lambda world: {path.name: path.read_bytes() for path in (world / "corrected").glob("Annotations/*.xml")},
    ),
    "report": _of_run("report", then=lambda world: {"report": _json(world / "run/report.json")}),
    "train from .safetensors": _train("ready", "--model.weights", "weights.safetensors"),
    "train from .pth": _train("ready", "--model.weights", "weights.pth"),
    "train on COCO": Command(lambda world: ["train", world / "new", *on_coco(world, 2)], _of("new")),
    "train on YOLO": Command(lambda world: ["train", world / "new", *on_yolo(world)], _of("new")),
    "resume": Command(lambda world: ["train", world / "run", *on_toy(world / "ready", 6)], _of("run")),
    "resume on COCO": Command(lambda world: ["train", world / "coco-run", *on_coco(world, 6)], _of("coco-run")),
    "eval": _of_run("eval", then=lambda world: {"report": _json(world / "run" / REPORT)}),
    "eval --loss": _of_run("eval", "--loss", then=lambda world: {"report": _json(world / "run" / REPORT)}),
    "eval on COCO": _of_run(
        "eval",
        run="coco-run",
        then=lambda world: {name: _json(world / "coco-run" / name) for name in (REPORT, "detections.json")},
    ),
    "eval on YOLO": Command(
        lambda world: ["eval", world / "run", "--data", f"{world / 'yolo/data.yaml'}:val"],
        lambda world: {"report": _json(world / "run" / REPORT)},
    ),
    "detect": Command(
        lambda world: [
            *["detect", world / "run", *(_picture(world / "ready/JPEGImages", stem) for stem in "gh")],
            *["--out", world / "out"],
        ],
        _of("out", _detected),
    ),
    "loss": _of_run("loss", then=_of("run", _losses)),
    "bootstrap": _of_run("bootstrap", then=lambda world: {"report": _json(world / "run/bootstrap" / REPORT)}),
    "bootstrap on crops": _of_run(
        *("bootstrap", "--crops", "--crop-size", "32", "--crop-context", "4", "--crop-proposals", "4"),
        then=lambda world: {"report": _json(world / "run/crops" / REPORT)},
    ),
    "propose": Command(
        lambda world: ["propose", f"{world / 'ready'}:train", f"{world / 'ready'}:test", "--jobs", 1],
        _of("ready", _proposed),
    ),
    "propose again": Command(
        lambda world: ["propose", f"{world / 'partial'}:train", "--jobs", 1], _of("partial", _proposed)
    ),
    "propose by edges": Command(
        lambda world: [
            *["propose", f"{world / 'ready'}:test", "--jobs", 1, "--mode", "edge-boxes"],
            *["--edge-model", world / "edges.yml.gz"],
        ],
        _of("ready", _proposed),
    ),
    "compare": Command(compare_line, _of("compare", _compared)),
    "reproduce": Command(reproduce_line, _of("table", _compared)),
    "demo": Command(
        lambda world: ["demo", world / "demo", "--steps", 1, "--train-images", 2, "--test-images", 1],
        lambda world: {name: checkpoint_of(world / "demo" / name / "checkpoint.pt") for name in ("frcn", "ohem")},
    ),
    "caffe": Command(lambda _: CAFFE, lambda world: {"weights": torch.load(world / "caffe.pt")}),
}  # fmt: skip


def _picture(folder: Path, stem: str) -> Path:
    """Returns the image of this name with any suffix, or a name for one that is missing."""
    return next(iter(sorted(folder.glob(f"{stem}.*"))), folder / f"{stem}.png")


def _load_caffe(world: Path) -> tuple[int, str, str]:
    """Fills a network from a .caffemodel, as training does."""
    pretrained = Pretrained(caffe=TOY_CAFFE.caffe, caffe_input=TOY_CAFFE.caffe_input)
    backbone = toy(pretrained)
    try:
        load_weights(backbone, world / "weights.caffemodel")
    except InputError as error:
        return 2, "", f"ohem: {error}\n"
    torch.save(digest(backbone.state_dict()), world / "caffe.pt")
    return 0, "", ""


# Commands that start others


class _Ended:
    """Stands for the process of a command that ran here from its start to its end."""

    pid = 0

    def __init__(self, command: Sequence[str], stdout: Any = None, **_: Any) -> None:
        result = ohem(*command[command.index("ohem") + 1 :])
        self.returncode = result.code
        if stdout is None:
            print(result.out, end="")
        else:
            stdout.write(f"{result.out}{result.err}".encode())
            stdout.flush()

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode

    def terminate(self) -> None:
        """Does nothing: the command has ended already."""

    kill = terminate


class _Subprocess:
    """Replaces the module subprocess: commands of ohem run in this process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    Popen = _Ended

    @staticmethod
    def run(command: Sequence[str], **options: Any) -> _Ended:
        return _Ended(command)


class _Here(Executor):
    """Runs a job at once: signals can be handled in the main thread alone."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """Returns a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future


@contextmanager
def children_in_this_process() -> Iterator[None]:
    """Makes `ohem compare` and `ohem reproduce` start no Python processes, which would take most of the time."""
    runner: Any = importlib.import_module("ohem.experiments.runner")
    changes = {"subprocess": _Subprocess(), "ThreadPoolExecutor": _Here}
    before = {name: getattr(runner, name) for name in changes}
    vars(runner).update(changes)
    try:
        yield
    finally:
        vars(runner).update(before)
