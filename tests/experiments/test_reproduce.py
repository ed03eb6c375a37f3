"""`ohem reproduce`: every row of every table gives valid commands, and the table contains the results of the runs."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ohem.config.paper import TABLES
from ohem.config.paper_data import LARGER, PaperData
from ohem.config.recipes import PAPER_M, RECIPES
from ohem.config.schema import Recipe
from ohem.config.schema import TestConfig as HowTested
from ohem.evaluation import evaluate
from ohem.experiments import loss_curves, reproduce, runner
from ohem.experiments.runner import Job
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy

SMALL = ["--small", "--data.train", "a:trainval", "b:trainval", "--data.test", "a:test"]
PAPER = ["--data.voc07", "VOC2007", "--data.voc12", "VOC2012", "--data.coco", "COCO"]


@pytest.mark.parametrize("folder", ["/data/COCO-and-VOC/VOC2007", "/d/VOC2012/VOC2007"])
def test_folders_may_have_the_names_of_data_sets(folder: str) -> None:
    data = PaperData(voc07=Path(folder), voc12=Path("/d/v12"))
    train, test = data.paper("voc0712")
    assert train == (f"{folder}:trainval", "/d/v12:trainval")
    assert test == (f"{folder}:test",)


def test_parallel_jobs_have_different_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    out = tmp_path / "seen"
    code = "import os, pathlib; pathlib.Path(f'{}-{}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(
        runner, "_python_command", lambda arguments: [sys.executable, "-c", code.format(out, arguments[0])]
    )
    jobs = [Job(tmp_path / name, [name], {tmp_path / f"{name}.json": ["unused"]}) for name in "abc"]
    with runner._places(out, 3, None) as places:
        for slot, job in enumerate(jobs):
            places.start(job, range(slot))
    assert [Path(f"{out}-{name}").read_text() for name in "abc"] == ["4", "7", "4"]


class Recorded:
    """Records what commands would train and test; nothing is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: dict[Path, Recipe] = {}
        self.tested: list[tuple[Path, HowTested, str | None]] = []
        monkeypatch.setattr("ohem.training.run.run_training", self._train)
        monkeypatch.setattr(evaluate, "evaluate_run", self._evaluate)
        monkeypatch.setattr(loss_curves, "compare_losses", self._measure)
        monkeypatch.setattr("ohem.config.resolve.read_run", lambda run: self.trained[run])

    def _train(self, run: Path, name: str, recipe: Recipe, devices: str | None) -> None:
        assert name in RECIPES
        assert self.trained.setdefault(run, recipe) == recipe
        self.name = name

    def _evaluate(
        self, run: Path, data: Sequence[str], metric: str | None, loss: bool, test: HowTested, *_: Any
    ) -> None:
        self.tested.append((run, test, metric))

    def _measure(self, runs: Sequence[Path], *_: object, **__: object) -> None:
        self.tested += [(run, self.trained[run].test, None) for run in runs]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def _dry_run(name: str, *options: str) -> list[list[str]]:
    result = ohem("reproduce", name, "--dry-run", *options)
    assert result.code == 0, result
    return [shlex.split(line)[1:] for line in result.out.splitlines() if line.startswith("ohem ")]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("options", [SMALL, PAPER], ids=["small", "paper"])
def test_every_command_is_valid(name: str, options: list[str], recorded: Recorded) -> None:
    lines = _dry_run(name, *options, "--seeds", "2", "--solver.clip", "3")
    for line in lines:
        assert ohem(*line).code == 0, line
    rows = TABLES[name].rows
    if options is SMALL:  # the first source, or both for the larger sets of the paper
        trainings = {(row.data in LARGER, row.method) for row in rows}
        assert {len(recipe.data.train) for recipe in recorded.trained.values()} == {
            1 + larger for larger, _ in trainings
        }
    else:
        trainings = {(row.data, row.method, network) for row in rows for network in TABLES[name].networks_of(row)}
    assert len(recorded.trained) == 2 * len(trainings)
    assert {recipe.solver.seed for recipe in recorded.trained.values()} == {0, 1}
    assert {recipe.solver.clip for recipe in recorded.trained.values()} == {3.0}
    assert len(recorded.tested) == 2 * sum(
        len(TABLES[name].networks_of(row)) if options is PAPER else 1 for row in rows
    )


def test_paper_settings_are_used(recorded: Recorded) -> None:
    for line in [*_dry_run("table1", *PAPER), *_dry_run("table3", *PAPER), *_dry_run("table5", *PAPER)]:
        ohem(*line)
    runs = {run.name: recipe for run, recipe in recorded.trained.items()}
    assert runs["voc07-vgg16-ohem-0"].solver.steps == 80_000
    assert runs["voc0712-vgg16-ohem-0"].solver.steps == 200_000
    assert runs["voc0712-vgg16-ohem-0"].data.train == ("VOC2007:trainval", "VOC2012:trainval")
    assert runs["coco-vgg16-ohem-0"].solver.steps == 240_000
    assert runs["voc07-vgg16-all-0"].solver.lr == pytest.approx(0.003)
    assert runs["voc07-vggm-all-n1-0"].solver.lr == pytest.approx(0.004)
    assert runs["voc07-vggm-all-n1-0"].sampler.batch_size == 2048
    assert runs["voc07-vgg16-ohem-n1-0"].solver.images == 1
    assert runs["voc07-vgg16-ohem-mb-0"].data.scales == (480, 576, 688, 864, 900)


def test_table_6_tests_every_training_in_four_ways(recorded: Recorded) -> None:
    for line in _dry_run("table6", *SMALL):
        ohem(*line)
    assert {run.name for run in recorded.trained} == {
        f"small-{method}-0" for method in ("frcn", "ohem", "frcn-mb", "ohem-mb")
    }
    for name in ("small-ohem-0", "small-ohem-mb-0"):
        tests = [
            (t.scales in ((), (400,)), t.iterations, t.voting) for run, t, _ in recorded.tested if run.name == name
        ]
        assert sorted(tests) == [(False, 1, False), (False, 2, True), (True, 1, False), (True, 2, True)]


def test_voc_2012_is_submitted_to_the_server() -> None:
    evaluations = [line for line in _dry_run("table4", *PAPER) if line[0] == "eval"]
    assert all("--submit" in line and "VOC2012:test" in line for line in evaluations)
    assert all("--data.test" not in line for line in _dry_run("table4", *PAPER))


def test_table_2_runs_the_benchmark() -> None:
    for options, source in ((SMALL, "a:trainval"), (PAPER, "VOC2007:trainval")):
        (line,) = _dry_run("table2", *options, "--steps", "3")
        assert line[:3] == ["bench", "--data.train", source]
        assert line[-2:] == ["--steps", "3"]


def test_rows_of_the_larger_set_need_a_second_source() -> None:
    one = ["--small", "--data.train", "a:trainval", "--data.test", "a:test"]
    result = ohem("reproduce", "table3", "--dry-run", *one)
    assert "the rows of 07+12 are left out: they need a second source" in result.out
    assert all("b:trainval" not in line for line in _dry_run("table3", *one))
    assert all("a:trainval" in line for line in _dry_run("table3", *one) if line[0] == "train")


def test_recipes_have_the_paper_results_of_the_tables() -> None:
    """The result of a recipe is that of the row that tests it without other options."""
    for table in TABLES.values():
        for row in table.rows:
            for network in table.networks_of(row):
                entry = RECIPES[f"{row.data}-{network}-{row.method}"]
                if row.test(entry.recipe, PAPER_M) == entry.recipe.test:
                    assert entry.paper == row.paper(network), row.label


def test_table_contains_the_results_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run in this process, on toy data."""

    def in_this_process(jobs: Sequence[Job], parallel: int, first: Sequence[str], cluster: str | None) -> None:
        for command in [first, *(command for job in jobs for command in job.remaining())]:
            assert ohem(*command).code == 0, command

    monkeypatch.setattr(reproduce, "run_jobs", in_this_process)
    data = make_toy(tmp_path / "toy")
    options: list[object] = [
        *["--small", "--data.train", f"{data}:train", "--data.test", f"{data}:test", "--out", tmp_path / "out"],
        *["--model.backbone", "tiny", "--model.weights", "none", "--data.short", 64, "--data.long", 80],
        *["--solver.steps", 4, "--solver.images", 2, "--run.accelerator", "cpu", "--proposals.jobs", 1],
        *["--proposals.folder", tmp_path],
    ]
    result = ohem("reproduce", "table4", *options)
    assert result.code == 0, result
    report = json.loads((tmp_path / "out" / "table4.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["FRCN, 12", "OHEM, 12", "OHEM + M + B, 12"]
    for row in report["rows"]:
        evaluation = json.loads((tmp_path / "out" / f"{row['recipe']}-0" / "eval-voc10.json").read_text())
        assert row["maps"] == [evaluation["map"]]
        assert row["ap"] == [evaluation["ap"]]
        assert evaluation["metric"] == "voc10"
    assert "69.8" in result.out
    assert "72.9" in result.out
    for name, value in evaluation["ap"].items():  # the last column of the second table
        (line,) = [line for line in result.out.splitlines() if name in line.split()]
        assert line.split()[-2] == f"{value:.1f}"
    study = ohem("reproduce", "categories", *options)  # trains with --metric voc07 what table 4 trained
    assert study.code == 0, study
    content = json.loads((tmp_path / "out" / "categories.json").read_text())["small"]
    assert {one["name"] for one in content["classes"]} == set(evaluation["ap"])
    assert all(one["mined"] > 0 and one["background"] is not None for one in content["classes"])
    assert (tmp_path / "out" / "categories.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--small"], "--data.train"),
        (["table1"], "--data.voc07"),
        (["table5", "--data.voc07", "x"], "--data.coco"),
        (["table9"], "table9"),
        (["table1", *SMALL, "--seeds", "0"], "--seeds 0"),
        (["table1", *SMALL, "--dry-run", "--solver.seed", "3"], "--seeds"),
        (["table1", *SMALL, "--dry-run", "--solver.lr", "abc"], "abc"),
        (["table3", *PAPER, "--dry-run", "--networks", "vggm"], "the paper has vgg16 there"),
    ],
)
def test_bad_input_is_reported(arguments: list[str], message: str) -> None:
    assert message in sentence(ohem("reproduce", *arguments))


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ([], "1200"),
        (["--solver.steps", "40"], "10"),
        (["--solver.steps=40"], "10"),
        (["--solver.steps", "2"], "1"),
        (["--run.snapshot-every", "7"], "7"),
    ],
)
def test_figure_3_has_four_points_for_any_number_of_steps(options: list[str], every: str) -> None:
    for line in _dry_run("figure3", *SMALL, *options):
        if line[0] == "train":
            assert line.count("--run.snapshot-every") == 1
            assert line[line.index("--run.snapshot-every") + 1] == every


def test_unknown_option_of_training_is_reported(tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    options = [
        "--small",
        "--data.train",
        f"{data}:train",
        "--data.test",
        f"{data}:test",
        "--out",
        str(tmp_path / "out"),
    ]
    result = ohem("reproduce", "figure3", *options, "--proposals.jobs", "1", "--solver.stpes", "3", "--jobs", "2")
    assert "--solver.stpes" in sentence(result)


def test_m_and_b_are_options_of_the_test() -> None:
    row = next(row for row in TABLES["table6"].rows if row.label == "OHEM, M test, B")
    recipe = RECIPES["small-ohem"].recipe
    assert row.test(recipe, (1, 2)) == replace(recipe.test, scales=(1, 2), iterations=2, voting=True)
