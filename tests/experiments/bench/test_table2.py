"""`ohem bench` on toy data, by the command line."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ohem.experiments.bench.arms import ARMS, Arm, arm_recipe
from ohem.experiments.bench.training import training
from ohem.training import checkpoint
from ohem.training.config import Recipe
from ohem.training.runs import read_run
from tests.command_line import ohem, sentence
from tests.toy import make_toy
from tests.toy import training as train_options


class Benchmark(NamedTuple):
    out: str
    report: dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("data") / "toy")


def options(data: Path) -> list[object]:
    return [
        *["--data.train", f"{data}:train", "--backbones", "tiny", "--data.short", 64, "--data.long", 80],
        *["--proposals.jobs", 1, "--run.accelerator", "cpu"],
    ]


@pytest.fixture(scope="module")
def benchmark(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """All arms, each with a step to warm up and two more."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "temporary").mkdir()
        patch.setattr("tempfile.tempdir", str(folder / "temporary"))
        result = ohem("bench", *options(data), "--steps", 2, "--out", folder / "bench.json")
    assert result.code == 0, result.err
    assert not list((folder / "temporary").iterdir())
    return Benchmark(result.out, json.loads((folder / "bench.json").read_text()))


def test_every_arm_has_its_row_and_its_times(benchmark: Benchmark) -> None:
    entry = benchmark.report["backbones"]["tiny"]
    assert list(entry["arms"]) == list(entry["summary"]) == list(ARMS)
    for name, arm in entry["arms"].items():
        assert f"│ {name} " in benchmark.out
        assert (len(arm["seconds"]), len(arm["warmup_seconds"])) == (2, 1)
        assert min(arm["seconds"] + arm["warmup_seconds"]) > 0
        assert arm["peak"]["resident_peak"] >= arm["built"]["resident"] > 0
        assert arm["threads"] >= 1


def test_every_arm_sees_the_same_images_and_rois(benchmark: Benchmark) -> None:
    entry = benchmark.report["backbones"]["tiny"]
    shown = [arm["shown"] for arm in entry["arms"].values()]
    assert all(each == shown[0] for each in shown)
    assert len({step["digest"] for step in shown[0]}) == 3
    for step in shown[0]:
        assert len(step["images"]) == 2
        assert all(0 < distinct <= rois for distinct, rois in zip(step["distinct"], step["rois"], strict=True))
    assert f"{entry['rois_an_image']['rois']:.0f} RoIs an image" in benchmark.out


def test_the_report_tells_the_options_that_hold_for_all_arms(benchmark: Benchmark) -> None:
    told = benchmark.report["options"]
    assert (told["steps"], told["warmup"], told["arms"], told["backbones"]) == (2, 1, list(ARMS), ["tiny"])
    assert (told["data"]["short"], told["solver"]["images"], told["data"]["classes"]) == (64, 2, ["blue", "red"])
    assert "backbone" not in told["model"]
    assert "name" not in told["sampler"]


@pytest.fixture(scope="module")
def usual(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """What arms are made of: a recipe as resolved by `ohem train`."""
    run = tmp_path_factory.mktemp("runs") / "usual"
    assert ohem("train", run, *train_options(data, steps=1)).code == 0
    return read_run(run)


@pytest.mark.parametrize(
    ("arm", "line"),
    [
        ("frcn", ["--sampler.name", "random"]),
        ("frcn-accumulate", ["--sampler.name", "random", "--solver.accumulate"]),
        ("ohem", []),
        ("ohem-accumulate", ["--solver.accumulate"]),
        ("ohem-loss-layer", ["--model.implementation", "loss_layer"]),
    ],
)
def test_what_is_timed_is_what_trains(data: Path, usual: Recipe, tmp_path: Path, arm: Arm, line: list[str]) -> None:
    """Steps of an arm leave the weights of as many steps of `ohem train` with the options that the arm stands for."""
    run = tmp_path / "run"
    assert ohem("train", run, *train_options(data, steps=3), *line).code == 0
    with training(arm_recipe(usual, "tiny", arm), tmp_path, steps=3) as workload:
        for step in range(3):
            workload.load(step)
            workload.run()
    state = checkpoint.load(run)
    assert state is not None
    ours = workload.trainer.detector.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in state["model"].items())


# Bad input


def test_no_data() -> None:
    assert "--data.train FOLDER:SPLIT" in sentence(ohem("bench"))


def test_unknown_arm(data: Path) -> None:
    assert "ohem-loss-layer" in sentence(ohem("bench", *options(data), "--arms", "loss-layer"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["--steps", 0], "--steps 0"),
        (["--warmup", -1], "--warmup -1"),
        (["--model.backbone", "resnet50"], "give --backbones"),
        (["--sampler.name", "all"], "give --arms"),
        (["--solver.steps", 7], "give --steps"),
        (["--run.devices", 2], "--run.devices 2"),
        (["--data.scales", 0], "--data.scales 0"),
        (["--backbones", "mobilenet_v3_large"], "--model.backbone mobilenet_v3_large is none of"),
        (["--model.detector", "ssdlite"], "--model.detector ssdlite"),
    ],
)
def test_options_that_mean_nothing(data: Path, line: list[object], told: str) -> None:
    assert told in sentence(ohem("bench", *options(data), *line))


def test_out_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "nowhere" / "bench.json", tmp_path):
        assert f"--out {out}" in sentence(ohem("bench", *options(data), "--out", out))


def test_a_step_that_fails_in_its_process(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence is that of the training, and the file that it names is kept."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = ohem("bench", *options(data), "--arms", "frcn", "--solver.lr", 1e30, "--out", tmp_path / "bench.json")
    told = sentence(result)
    assert "frcn, step 2: the loss is not finite at step 2" in told
    (evidence,) = tmp_path.glob("ohem-bench-*/non-finite-0.json")
    assert str(evidence) in told
    assert not (tmp_path / "bench.json").exists()
