"""Edge Boxes and unions of methods on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.scale.edge_forest import write_edge_forest

from ohem.config.schema import ProposalConfig
from ohem.evaluation import detect as detection
from ohem.experiments.commands import propose_command
from ohem.inputs.datasets import open_data
from ohem.inputs.proposals import build_proposals
from ohem.training.logs.metrics_log import read_metrics
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_edge_forest(tmp_path_factory.mktemp("edges") / "model.yml.gz")


@pytest.fixture(scope="module")
def toy(data: Path, model: Path) -> Path:
    """Returns a copy of the data, whose proposals of selective search are made."""
    return Path(shutil.copytree(data, model.parent / "toy"))


@pytest.fixture(scope="module")
def run(toy: Path, model: Path) -> Path:
    run = toy.parent / "run"
    assert ohem("train", run, *training(toy), *union(model), "--run.log-every", 1).code == 0
    return run


def union(model: Path) -> list[object]:
    return ["--proposals.mode", "fast", "edge-boxes", "--proposals.edge-model", model, "--proposals.top", 40]


def config(model: Path, *modes: str, top: int = 40) -> ProposalConfig:
    return ProposalConfig(mode=modes, edge_model=str(model) if "edge-boxes" in modes else None, top=top, jobs=1)  # type: ignore[arg-type]


def test_a_union_has_the_first_boxes_of_both_methods(toy: Path, model: Path, run: Path) -> None:
    """Also counts the RoIs of a step: the boxes of two images, and their two objects each."""
    data = open_data([f"{toy}:train"], (), "--data.train")
    both, *parts = (
        build_proposals(data, config(model, *modes)) for modes in (("fast", "edge-boxes"), ("fast",), ("edge-boxes",))
    )
    for name in data.ids:
        boxes = [{tuple(box) for box in part[name][:40].tolist()} for part in parts]
        assert {tuple(box) for box in both[name].tolist()} == set.union(*boxes)
        assert len(boxes[1]) > 10
        assert boxes[1] - boxes[0]
        np.testing.assert_array_equal(both[name][: len(boxes[0])], parts[0][name][:40])
    assert len(both) == len(data)
    counts = {len(both[name]) for name in data.ids}
    assert all(2 * min(counts) <= float(row["rois"]) - 4 <= 2 * max(counts) for row in read_metrics(run))
    assert len(list((toy / "Proposals").glob("train.*.safetensors"))) == 2


def test_every_command_takes_a_run_with_a_union(toy: Path, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert ohem("eval", copy, "--loss").code == 0
    images = [toy / "JPEGImages" / f"{stem}.png" for stem in "gh"]
    assert ohem("detect", copy, *images, "--out", tmp_path / "drawn").code == 0
    assert len(json.loads((tmp_path / "drawn/detections.json").read_text())) == 2


def test_processes_propose_for_detections_what_one_does(toy: Path, model: Path) -> None:
    files, both = sorted((toy / "JPEGImages").iterdir())[:3], config(model, "fast", "edge-boxes")
    one, two = ([boxes for _, boxes in detection._with_proposals(files, both, workers)] for workers in (1, 2))
    for boxes, same in zip(one, two, strict=True):
        np.testing.assert_array_equal(boxes, same)
    cached = build_proposals(open_data([f"{toy}:train"], (), "--data.train"), both)
    np.testing.assert_array_equal(one[0], cached["a"])


def test_a_run_is_resumed_with_an_equal_model_alone(toy: Path, model: Path, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    moved = Path(shutil.copy(model, tmp_path / "moved.yml.gz"))
    assert ohem("train", copy, *training(toy, steps=3), *union(moved)).code == 0
    other = write_edge_forest(tmp_path / "other.yml.gz", threshold=0.4)
    text = sentence(ohem("train", copy, *training(toy, steps=4), *union(other)))
    assert text.startswith("the proposals of ")
    moved.unlink()
    text = sentence(ohem("eval", copy))
    assert text.startswith(
        f"{moved}: the model of Edge Boxes cannot be read (No such file or directory): name OpenCV's"
    )
    wrong = tmp_path / "wrong.yml.gz"
    wrong.write_text("no model")
    assert f"{wrong} is damaged, or no model" in sentence(ohem("train", copy, *training(toy, steps=4), *union(wrong)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["edge-boxes"], "mode edge-boxes needs a model: name OpenCV's model.yml.gz with {}edge-model"),
        (["fast", "{}edge-model", "x"], "{}edge-model is for {}mode edge-boxes: add the method, or"),
        (["fast", "quality", "fast"], "{}mode has fast twice: leave one out"),
        (["fast", "sliding"], "{}mode fast sliding: sliding is used alone: leave out sliding, or the others"),
        (["none", "quality"], "{}mode none quality: none is used alone"),
    ],
)
def test_methods_that_do_not_fit_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    for prefix, command in (
        ("--", ["propose", "x:train"]),
        ("--proposals.", ["train", tmp_path / "run", *training(tmp_path)]),
    ):
        given = [option.replace("{}", prefix) for option in options]
        assert message.replace("{}", prefix) in sentence(ohem(*command, f"{prefix}mode", *given))


def test_a_config_file_may_name_one_or_several_methods(toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    line = ["train", tmp_path / "run", *training(toy), "--config", file]
    for modes, text in (("none", "none leaves"), ("[none, fast]", "none is used alone"), ("slow", "slow")):
        file.write_text(f"proposals: {{mode: {modes}}}\n")
        assert text in sentence(ohem(*line))


def test_the_command_that_proposes_names_methods_and_model() -> None:
    given = ProposalConfig(mode=("fast", "edge-boxes"), edge_model="m.yml.gz")
    assert propose_command(["x:train"], (), given) == [
        *["propose", "x:train", "--mode", "fast", "edge-boxes"],
        *["--edge-model", "m.yml.gz"],
    ]
