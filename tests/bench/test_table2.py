"""`ohem bench` on toy data, on the command line."""

import inspect
import json
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ohem.bench.methods import BENCH_METHODS, LISTED, BenchMethod, method_recipe
from ohem.bench.workload import training_workload
from ohem.cli.experiments import bench
from ohem.config.methods import replace_options
from ohem.config.recipe_file import read_run
from ohem.config.recipes import RECIPES
from ohem.config.schema import Recipe
from ohem.training import checkpoint
from tests.helpers.command_line import FORKS, ohem, sentence
from tests.helpers.toy_data import NAMES
from tests.helpers.toy_data import training as train_options

# Each takes a process. What is measured of the other methods is tested in `test_measured_steps_are_those_of_training`.
MEASURED = ("frcn", "ohem", "ohem-loss-layer")


class Benchmark(NamedTuple):
    out: str
    report: dict[str, Any]


def bench_options(data: Path) -> list[object]:
    return [
        *["--data.train", f"{data}:train", "--backbones", "tiny", "--data.short", 64, "--data.long", 80],
        *["--proposals.jobs", 1, "--run.accelerator", "cpu"],
    ]


@pytest.fixture(scope="module")
def benchmark(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """The methods `MEASURED`, with one step of warm-up and two measured steps."""
    folder = tmp_path_factory.mktemp("bench")
    forkserver.ensure_running()  # it has a temporary folder too
    with pytest.MonkeyPatch.context() as patch:
        (folder / "temporary").mkdir()
        patch.setattr("tempfile.tempdir", str(folder / "temporary"))
        patch.setattr("ohem.bench.measure.get_context", lambda _: FORKS)
        options = ["--methods", *MEASURED, "--steps", 2, "--out", folder / "bench.json"]
        result = ohem("bench", *bench_options(data), *options)
    assert result.code == 0, result.err
    assert not list((folder / "temporary").iterdir())
    return Benchmark(result.out, json.loads((folder / "bench.json").read_text()))


def test_all_methods_are_measured_by_default() -> None:
    assert inspect.signature(bench).parameters["methods"].default == BENCH_METHODS


def test_a_shortlist_has_the_length_of_the_user() -> None:
    own = replace_options(Recipe(), model={"shortlist": 300})
    lengths = {
        method: [method_recipe(base, "tiny", method).model.shortlist for base in (Recipe(), own)]
        for method in ("frcn", "ohem", "ohem-shortlist")
    }
    assert lengths == {"frcn": [0, 0], "ohem": [0, 0], "ohem-shortlist": [LISTED, 300]}


def test_the_measured_step_of_a_shortlist_is_a_later_visit(data: Path, tmp_path: Path) -> None:
    recipe = replace_options(
        RECIPES["demo-ohem"].recipe,
        data={"train": (f"{data}:train",), "classes": NAMES, "short": 64, "long": 80},
        model={"shortlist": 64},
        proposals={"jobs": 1},
    )
    with training_workload(recipe, tmp_path, 1) as workload:
        workload.load(0)
        shortlist = workload.trainer.update.shortlist
        assert shortlist is not None
        assert [visit.number for visit in shortlist.visits.values()] == [1, 1]
        workload.run()
        assert [visit.number for visit in shortlist.visits.values()] == [2, 2]


def test_every_method_has_a_row_and_seconds(benchmark: Benchmark) -> None:
    entry = benchmark.report["backbones"]["tiny"]
    assert list(entry["methods"]) == list(entry["summary"]) == list(MEASURED)
    for name, method in entry["methods"].items():
        assert f"│ {name} " in benchmark.out
        assert (len(method["seconds"]), len(method["warmup_seconds"])) == (2, 1)
        assert min(method["seconds"] + method["warmup_seconds"]) > 0
        assert method["peak"]["resident_peak"] >= method["built"]["resident"] > 0
        assert method["threads"] >= 1


def test_every_method_has_the_same_images_and_rois(benchmark: Benchmark) -> None:
    entry = benchmark.report["backbones"]["tiny"]
    batches = [method["batches"] for method in entry["methods"].values()]
    assert all(batch == batches[0] for batch in batches)
    assert len({step["digest"] for step in batches[0]}) == 3
    for step in batches[0]:
        assert len(step["images"]) == 2
        assert all(0 < distinct <= rois for distinct, rois in zip(step["distinct"], step["rois"], strict=True))
    assert f"{entry['rois_an_image']['rois']:.0f} RoIs an image" in benchmark.out


def test_report_has_the_options_of_all_methods(benchmark: Benchmark) -> None:
    values = benchmark.report["options"]
    assert (values["steps"], values["warmup"], values["methods"], values["backbones"]) == (
        2,
        1,
        list(MEASURED),
        ["tiny"],
    )
    assert (values["data"]["short"], values["solver"]["images"], values["data"]["classes"]) == (
        64,
        2,
        ["blue", "red"],
    )
    assert "backbone" not in values["model"]
    assert "name" not in values["sampler"]


@pytest.fixture(scope="module")
def usual(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe of a run, with all values of `ohem train`."""
    run = tmp_path_factory.mktemp("runs") / "usual"
    assert ohem("train", run, *train_options(data, steps=1)).code == 0
    return read_run(run)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("frcn", ["--sampler.name", "random"]),
        ("frcn-accumulate", ["--sampler.name", "random", "--solver.accumulate"]),
        ("ohem", []),
        ("ohem-accumulate", ["--solver.accumulate"]),
        ("ohem-loss-layer", ["--model.implementation", "loss_layer"]),
    ],
)
def test_measured_steps_are_those_of_training(
    data: Path, usual: Recipe, tmp_path: Path, method: BenchMethod, options: list[str]
) -> None:
    """The steps of a method give the weights of `ohem train` with the same steps and the options of the method."""
    run = tmp_path / "run"
    assert ohem("train", run, *train_options(data, steps=3), *options).code == 0
    with training_workload(method_recipe(usual, "tiny", method), tmp_path, steps=3) as workload:
        for step in range(3):
            workload.load(step)
            workload.run()
    state = checkpoint.load(run)
    assert state is not None
    ours = workload.trainer.detector.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in state["model"].items())


# Bad input


def test_missing_data_are_reported() -> None:
    assert "--data.train FOLDER:SPLIT" in sentence(ohem("bench"))


def test_unknown_method_is_reported(data: Path) -> None:
    assert "ohem-loss-layer" in sentence(ohem("bench", *bench_options(data), "--methods", "loss-layer"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 0], "--steps 0"),
        (["--warmup", -1], "--warmup -1"),
        (["--model.backbone", "resnet50"], "give --backbones"),
        (["--sampler.name", "all"], "give --methods"),
        (["--solver.steps", 7], "give --steps"),
        (["--run.devices", 2], "--run.devices 2"),
        (["--data.scales", 0], "--data.scales 0"),
        (["--backbones", "mobilenet_v3_large"], "--model.backbone mobilenet_v3_large does not fit"),
        (["--model.detector", "ssdlite"], "--model.detector ssdlite"),
    ],
)
def test_unusable_options_are_reported(data: Path, arguments: list[object], message: str) -> None:
    assert message in sentence(ohem("bench", *bench_options(data), *arguments))


def test_unwritable_out_is_reported(data: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "nowhere" / "bench.json", tmp_path):
        assert f"--out {out}" in sentence(ohem("bench", *bench_options(data), "--out", out))


def test_failed_step_is_reported_with_its_file(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is that of the training, and the file that it names is kept."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("ohem.bench.measure.get_context", lambda _: FORKS)
    result = ohem(
        "bench", *bench_options(data), "--methods", "frcn", "--solver.lr", 1e30, "--out", tmp_path / "bench.json"
    )
    message = sentence(result)
    assert "frcn, step 2: the loss is not finite at step 2" in message
    (evidence,) = tmp_path.glob("ohem-bench-*/non-finite-0.json")
    assert str(evidence) in message
    assert not (tmp_path / "bench.json").exists()
