"""`ohem reproduce`: every row of every table is a line that the command line takes, and a table of what came out."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ohem.experiments import all_rois, reproduce, runner
from ohem.experiments.place import LARGER, Place
from ohem.experiments.runner import Job
from ohem.experiments.tables import TABLES
from ohem.training import evaluate, start
from ohem.training.config import Recipe
from ohem.training.config import TestConfig as HowTested
from ohem.training.recipes import PAPER_M, RECIPES
from tests.command_line import ohem, sentence
from tests.toy import make_toy

SMALL = ["--small", "--data.train", "a:trainval", "b:trainval", "--data.test", "a:test"]
PAPER = ["--data.voc07", "VOC2007", "--data.voc12", "VOC2012", "--data.coco", "COCO"]


@pytest.mark.parametrize("folder", ["/data/COCO-and-VOC/VOC2007", "/d/VOC2012/VOC2007"])
def test_folders_may_be_called_as_the_data_sets_are(folder: str) -> None:
    place = Place(voc07=Path(folder), voc12=Path("/d/v12"))
    train, test = place.paper("voc0712")
    assert train == (f"{folder}:trainval", "/d/v12:trainval")
    assert test == (f"{folder}:test",)


def test_jobs_at_once_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    out = tmp_path / "seen"
    code = "import os, pathlib; pathlib.Path(f'{}-{}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(runner, "_command", lambda words: [sys.executable, "-c", code.format(out, words[0])])
    jobs = [Job(tmp_path / name, [name], {tmp_path / f"{name}.json": ["unused"]}) for name in "abc"]
    running = [runner._Running(job, 3, slot) for slot, job in enumerate(jobs)]
    for each in running:
        each.process.wait()
    assert [Path(f"{out}-{name}").read_text() for name in "abc"] == ["4", "7", "4"]


class Asked:
    """What the lines asked for; nothing is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: dict[Path, Recipe] = {}
        self.tested: list[tuple[Path, HowTested, str | None]] = []
        monkeypatch.setattr(start, "start", self._train)
        monkeypatch.setattr(evaluate, "evaluate_run", self._evaluate)
        monkeypatch.setattr(all_rois, "compare_losses", self._measure)
        monkeypatch.setattr("ohem.training.runs.read_run", lambda run: self.trained[run])

    def _train(self, run: Path, name: str, recipe: Recipe, devices: str | None) -> None:
        assert name in RECIPES
        assert self.trained.setdefault(run, recipe) == recipe
        self.name = name

    def _evaluate(
        self, run: Path, data: Sequence[str], metric: str | None, loss: bool, test: HowTested, *_: Any
    ) -> None:
        self.tested.append((run, test, metric))

    def _measure(self, runs: Sequence[Path], *_: object) -> None:
        self.tested += [(run, self.trained[run].test, None) for run in runs]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def _dry(name: str, *words: str) -> list[list[str]]:
    result = ohem("reproduce", name, "--dry-run", *words)
    assert result.code == 0, result
    return [shlex.split(line)[1:] for line in result.out.splitlines() if line.startswith("ohem ")]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("words", [SMALL, PAPER], ids=["small", "paper"])
def test_every_line_is_one_that_the_command_line_takes(name: str, words: list[str], asked: Asked) -> None:
    lines = _dry(name, *words, "--seeds", "2", "--solver.clip", "3")
    for line in lines:
        assert ohem(*line).code == 0, line
    rows = TABLES[name].rows
    if words is SMALL:  # the paper's sets are the first source, or both where they are the larger ones
        trainings = {(row.data in LARGER, row.variant) for row in rows}
        assert {len(recipe.data.train) for recipe in asked.trained.values()} == {1 + larger for larger, _ in trainings}
    else:
        trainings = {(row.data, row.variant, network) for row in rows for network in row.paper}
    assert len(asked.trained) == 2 * len(trainings)
    assert {recipe.solver.seed for recipe in asked.trained.values()} == {0, 1}
    assert {recipe.solver.clip for recipe in asked.trained.values()} == {3.0}
    assert len(asked.tested) == 2 * sum(len(row.paper) if words is PAPER else 1 for row in rows)


def test_settings_of_the_paper(asked: Asked) -> None:
    for line in [*_dry("table1", *PAPER), *_dry("table3", *PAPER), *_dry("table5", *PAPER)]:
        ohem(*line)
    runs = {run.name: recipe for run, recipe in asked.trained.items()}
    assert runs["voc07-vgg16-ohem-0"].solver.steps == 80_000
    assert runs["voc0712-vgg16-ohem-0"].solver.steps == 200_000
    assert runs["voc0712-vgg16-ohem-0"].data.train == ("VOC2007:trainval", "VOC2012:trainval")
    assert runs["coco-vgg16-ohem-0"].solver.steps == 240_000
    assert runs["voc07-vgg16-all-0"].solver.lr == pytest.approx(0.003)
    assert runs["voc07-vggm-all-n1-0"].solver.lr == pytest.approx(0.004)
    assert runs["voc07-vggm-all-n1-0"].sampler.batch_size == 2048
    assert runs["voc07-vgg16-ohem-n1-0"].solver.images == 1
    assert runs["voc07-vgg16-ohem-mb-0"].data.scales == (480, 576, 688, 864, 900)


def test_table_6_tests_each_training_in_four_ways(asked: Asked) -> None:
    for line in _dry("table6", *SMALL):
        ohem(*line)
    assert {run.name for run in asked.trained} == {f"small-{arm}-0" for arm in ("frcn", "ohem", "frcn-mb", "ohem-mb")}
    for name in ("small-ohem-0", "small-ohem-mb-0"):
        tests = [(t.scales in ((), (400,)), t.iterations, t.voting) for run, t, _ in asked.tested if run.name == name]
        assert sorted(tests) == [(False, 1, False), (False, 2, True), (True, 1, False), (True, 2, True)]


def test_the_server_scores_voc_2012() -> None:
    evaluations = [line for line in _dry("table4", *PAPER) if line[0] == "eval"]
    assert all("--submit" in line and "VOC2012:test" in line for line in evaluations)
    assert all("--data.test" not in line for line in _dry("table4", *PAPER))


def test_table_2_is_the_benchmark() -> None:
    for words, source in ((SMALL, "a:trainval"), (PAPER, "VOC2007:trainval")):
        (line,) = _dry("table2", *words, "--steps", "3")
        assert line[:3] == ["bench", "--data.train", source]
        assert line[-2:] == ["--steps", "3"]


def test_rows_of_the_larger_set_need_a_second_source() -> None:
    one = ["--small", "--data.train", "a:trainval", "--data.test", "a:test"]
    result = ohem("reproduce", "table3", "--dry-run", *one)
    assert "the rows of 07+12 need a second source" in result.out
    assert all("b:trainval" not in line for line in _dry("table3", *one))
    assert all("a:trainval" in line for line in _dry("table3", *one) if line[0] == "train")


def test_recipes_have_the_figures_of_the_tables() -> None:
    """The figure of a recipe is that of the row which tests it as it is."""
    for table in TABLES.values():
        for row in table.rows:
            for network, figure in row.paper.items():
                entry = RECIPES[f"{row.data}-{network}-{row.variant}"]
                if figure is not None and row.test(entry.recipe, PAPER_M) == entry.recipe.test:
                    assert entry.paper == figure, row.label


def test_the_table_has_what_the_runs_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process, line by line, on toy data."""

    def in_this_process(jobs: Sequence[Job], parallel: int, first: Sequence[str]) -> None:
        for line in [first, *(line for job in jobs for line in job.left())]:
            assert ohem(*line).code == 0, line

    monkeypatch.setattr(reproduce, "run_jobs", in_this_process)
    data = make_toy(tmp_path / "toy")
    words: list[object] = [
        *["--small", "--data.train", f"{data}:train", "--data.test", f"{data}:test", "--out", tmp_path / "out"],
        *["--model.backbone", "tiny", "--model.weights", "none", "--data.short", 64, "--data.long", 80],
        *["--solver.steps", 4, "--solver.images", 2, "--run.accelerator", "cpu", "--proposals.jobs", 1],
        *["--proposals.folder", tmp_path],
    ]
    result = ohem("reproduce", "table4", *words)
    assert result.code == 0, result
    told = json.loads((tmp_path / "out" / "table4.json").read_text())
    assert [row["row"] for row in told["rows"]] == ["FRCN, 12", "OHEM, 12", "OHEM + M + B, 12"]
    for row in told["rows"]:
        report = json.loads((tmp_path / "out" / f"{row['recipe']}-0" / "eval-voc10.json").read_text())
        assert row["maps"] == [report["map"]]
        assert row["ap"] == [report["ap"]]
        assert report["metric"] == "voc10"
    assert "69.8" in result.out
    assert "72.9" in result.out
    for name, value in report["ap"].items():  # the last column of the second table
        (line,) = [line for line in result.out.splitlines() if name in line.split()]
        assert line.split()[-2] == f"{value:.1f}"


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_bad_input(words: list[str], message: str) -> None:
    assert message in sentence(ohem("reproduce", *words))


@pytest.mark.parametrize(
    ("words", "every"),
    [
        ([], "1200"),
        (["--solver.steps", "40"], "10"),
        (["--solver.steps=40"], "10"),
        (["--solver.steps", "2"], "1"),
        (["--run.snapshot-every", "7"], "7"),
    ],
)
def test_figure_3_has_four_points_however_long_the_training(words: list[str], every: str) -> None:
    for line in _dry("figure3", *SMALL, *words):
        if line[0] == "train":
            assert line.count("--run.snapshot-every") == 1
            assert line[line.index("--run.snapshot-every") + 1] == every


def test_an_unknown_option_of_training_is_told(tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    words = ["--small", "--data.train", f"{data}:train", "--data.test", f"{data}:test", "--out", str(tmp_path / "out")]
    result = ohem("reproduce", "figure3", *words, "--proposals.jobs", "1", "--solver.stpes", "3", "--jobs", "2")
    assert "--solver.stpes" in sentence(result)


def test_m_and_b_are_options_of_a_test() -> None:
    row = next(row for row in TABLES["table6"].rows if row.label == "OHEM, M test, B")
    recipe = RECIPES["small-ohem"].recipe
    assert row.test(recipe, (1, 2)) == replace(recipe.test, scales=(1, 2), iterations=2, voting=True)
