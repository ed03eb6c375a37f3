"""The commands on data in YOLO layout and with negatives, run as a user would."""

import csv
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

from ohem.errors import InputError
from ohem.experiments.runner import Job
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, make_toy_yolo, training_on

pytestmark = pytest.mark.filterwarnings("ignore:.*whose label file is missing or empty")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Returns the sources of the training data and the test data."""
    return make_toy_yolo(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def negatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of three images."""
    return make_toy(tmp_path_factory.mktemp("negatives") / "toy", {"all": "xyz"}) / "JPEGImages"


@pytest.fixture(scope="module")
def line(sources: tuple[str, str], negatives: Path) -> list[object]:
    """Returns the options of a training that sees each negative."""
    return [*training_on(*sources, steps=5, recipe="demo-frcn"), "--data.negatives", negatives, "--run.loss-every", 5]


@pytest.fixture(scope="module")
def run(line: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run with heuristic sampling; the message filter of tests is not active in a fixture."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.warns(UserWarning, match="whose label file is missing or empty"):
        result = ohem("train", folder, *line)
    assert result.code == 0, result
    assert f"{line[line.index('--data.negatives') + 1]}: 3 images without an object\n" in result.out
    return folder


def test_eval_gives_the_figures_of_coco(run: Path) -> None:
    assert ohem("eval", run).code == 0
    report = json.loads((run / "eval.json").read_text())
    assert (report["metric"], report["images"], list(report["ap"])) == ("coco", 2, ["blue", "red"])
    assert "and the data are in YOLO layout" in sentence(ohem("eval", run, "--submit", run / "out"))


def test_the_run_remembers_its_negatives(run: Path, line: list[object], negatives: Path) -> None:
    assert f"negatives:\n  - {negatives}\n" in (run / "recipe.yaml").read_text()
    assert (negatives / "Proposals/negatives.selective-search-fast.safetensors").exists()
    place = line.index("--data.negatives")
    without = [*line[:place], *line[place + 2 :]]
    assert "the image files of" in sentence(ohem("train", run, *without))
    moved = negatives.rename(negatives.with_name("moved"))
    assert ohem("train", run, *without, "--data.negatives", moved).code == 0  # the content counts, not the place
    (moved / "x.png").rename(moved.with_name("x.png"))
    text = sentence(ohem("train", run, *without, "--data.negatives", moved))
    assert f"{moved} are not those that {run} was made of" in text
    moved.with_name("x.png").rename(moved / "x.png")
    moved.rename(negatives)
    assert ohem("train", run, *line).code == 0


def test_the_loss_over_all_rois_includes_negatives(run: Path, sources: tuple[str, str]) -> None:
    """Checks that the training, `ohem loss` and `ohem eval --loss` measure the same images."""

    def rows() -> list[dict[str, str]]:
        with (run / "loss_all.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    (measured,) = rows()
    assert ohem("loss", run).code == 0
    assert rows() == [measured]
    assert ohem("eval", run, "--loss").code == 0
    assert json.loads((run / "eval.json").read_text())["loss_all_rois"] == pytest.approx(float(measured["loss"]))
    assert ohem("loss", run, "--data", sources[0]).code == 0
    assert {row["loss"] for row in rows()} > {measured["loss"]}
    assert {row["images"] for row in rows()} == {"6", "9"}


def test_methods_are_compared_with_negatives_of_their_own(
    sources: tuple[str, str], negatives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks the proposals that are made in advance, and that changed negatives of one method are noticed."""
    planned: list[tuple[str, list[str]]] = []

    def run_jobs(jobs: Sequence[Job], parallel: int, first: list[str], cluster: str | None) -> None:
        planned.append((jobs[0].data_digest, first))
        raise InputError("planned")

    monkeypatch.setattr(import_module("ohem.experiments.compare"), "run_jobs", run_jobs)
    methods = ["--methods", "frcn", f"frcn,data.negatives={negatives}"]
    for change in (lambda: None, lambda: (negatives / "w.png").write_bytes((negatives / "x.png").read_bytes())):
        change()
        line = ["compare", tmp_path / "out", *training_on(*sources), "--seeds", 1, *methods]
        assert sentence(ohem(*line)) == "planned"
    (negatives / "w.png").unlink()
    (before, propose), (after, _) = planned
    assert propose[:5] == ["propose", *sources, "--negatives", str(negatives)]
    assert before != after


def test_proposals_of_negatives_are_made_in_advance(negatives: Path, sources: tuple[str, str], tmp_path: Path) -> None:
    assert ohem("propose", sources[0], "--negatives", negatives, "--folder", tmp_path, "--jobs", 1).code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{folder}.selective-search-fast.safetensors" for folder in ("JPEGImages.negatives", "toy.train")]
    assert "does not exist" in sentence(ohem("propose", sources[0], "--negatives", tmp_path / "none"))
