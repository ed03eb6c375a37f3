"""The commands, run as a user would: what they print and write."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ohem.config.recipe_file import read_run
from ohem.detection.backbones.tiny import tiny
from ohem.detection.weights import load_weights
from tests.fuzz.commands import children_in_this_process
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import NAMES, make_toy, training


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run of 60 steps on the toy data."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert ohem("train", folder, *training(data, steps=60)).code == 0
    return folder


def test_train_makes_proposals_and_writes_the_whole_recipe(data: Path, run: Path) -> None:
    assert (data / "Proposals" / "train.selective-search-fast.safetensors").exists()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["recipe"] == "demo-ohem"
    assert recipe["data"]["classes"] == list(NAMES)
    assert recipe["solver"]["steps"] == 60
    assert recipe["model"]["backbone"] == "tiny"


def test_options_override_yaml_and_yaml_overrides_the_recipe(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("solver: {lr: 0.5, warmup: 7}\nsampler: {batch_size: 16}\n")
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=1), "--config", config, "--solver.lr", 0.25).code == 0
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["solver"]["lr"], recipe["solver"]["warmup"], recipe["sampler"]["batch_size"]) == (0.25, 7, 16)
    assert recipe["solver"]["momentum"] == 0.9


def test_eval_writes_what_it_prints(run: Path) -> None:
    printed = ohem("eval", run, "--loss")
    report = json.loads((run / "eval.json").read_text())
    assert set(report["ap"]) == set(NAMES)
    assert report["map"] == pytest.approx(np.mean(list(report["ap"].values())))
    assert (report["metric"], report["images"], report["step"]) == ("voc07", 2, 60)
    assert report["loss_all_rois"] > 0
    for name in NAMES:
        assert f"{report['ap'][name]:.1f}" in printed.out
    assert f"{report['map']:.1f}" in printed.out


def test_eval_on_other_data_and_metric(run: Path, data: Path) -> None:
    assert ohem("eval", run, "--data", f"{data}:train", "--metric", "voc10").code == 0
    report = json.loads((run / "eval.json").read_text())
    assert (report["metric"], report["images"]) == ("voc10", 6)


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return report


def test_eval_with_several_scales_and_voting(run: Path) -> None:
    assert ohem("eval", run).code == 0
    plain = report_of(run)
    options = ["--test.scales", 48, 64, 80, "--test.long", 120, "--test.iterations", 2, "--test.voting"]
    assert ohem("eval", run, *options).code == 0
    test = report_of(run)["test"]
    assert (plain["test"]["scales"], plain["test"]["iterations"], plain["test"]["voting"]) == ([], 1, False)
    assert (test["scales"], test["long"], test["iterations"], test["voting"]) == ([48, 64, 80], 120, 2, True)
    assert ohem("eval", run, *options, "--test.merge", "nearest").code == 0
    assert ohem("eval", run, "--test.scales", 64).code == 0
    assert report_of(run)["ap"] == plain["ap"]


def test_test_options_are_those_of_the_run_unless_given(data: Path, run: Path, tmp_path: Path) -> None:
    """Test options may also change when a run is resumed."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    options = ["--test.voting", "--test.iterations", 3, "--test.scales", 48, 64, "--test.score", 0.25]
    assert ohem("train", other, *training(data, steps=60), *options).code == 0
    assert ohem("eval", other).code == 0
    test = report_of(other)["test"]
    assert (test["voting"], test["iterations"], test["scales"], test["score"]) == (True, 3, [48, 64], 0.25)
    assert ohem("eval", other, "--test.no-voting", "--test.scales", 72).code == 0
    test = report_of(other)["test"]
    assert (test["voting"], test["iterations"], test["scales"], test["score"]) == (False, 3, [72], 0.25)
    assert ohem("train", other, *training(data, steps=60), "--data.scales", 48).code == 2


def test_submit_writes_the_detections(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    result = ohem("eval", run, "--submit", out)
    assert result.code == 0
    assert str(out) in result.out
    assert {path.name for path in out.iterdir()} == {f"comp4_det_test_{name}.txt" for name in NAMES}
    lines = [line.split() for path in out.iterdir() for line in path.read_text().splitlines()]
    assert {line[0] for line in lines} == {"g", "h"}
    boxes = np.array([line[2:] for line in lines], dtype=float)
    assert (boxes[:, :2] >= 1).all()
    assert (boxes[:, 2:] <= [80, 64]).all()
    assert (boxes[:, 2:] > boxes[:, :2] - 1).all()
    assert ohem("detect", run, data / "JPEGImages" / "g.png", "--out", tmp_path / "out").code == 0
    (entry,) = json.loads((tmp_path / "out" / "detections.json").read_text())
    of_g = [line for line in lines if line[0] == "g"]
    assert sorted(float(line[1]) for line in of_g) == pytest.approx(sorted(entry["scores"]), abs=1e-6)
    assert sorted(box[0] for box in entry["boxes"]) == pytest.approx(
        sorted(float(line[2]) - 1 for line in of_g), abs=0.01
    )


def test_submit_without_annotations_scores_nothing(run: Path, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "server", {"test": "xy"})
    (folder / "Annotations" / "y.xml").unlink()
    assert ohem("eval", run).code == 0
    before = (run / "eval.json").read_bytes()
    assert "y.xml" in sentence(ohem("eval", run, "--data", f"{folder}:test"))
    result = ohem("eval", run, "--data", f"{folder}:test", "--submit", tmp_path / "results")
    assert result.code == 0
    assert "nothing is scored" in result.out
    assert (run / "eval.json").read_bytes() == before
    ids = {line.split()[0] for p in (tmp_path / "results").iterdir() for line in p.read_text().splitlines()}
    assert ids == {"x", "y"}


def test_submit_refuses_images_that_share_an_id(run: Path, data: Path, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "other", {"test": "gz"})
    result = ohem("eval", run, "--data", f"{data}:test", f"{other}:test", "--submit", tmp_path / "results")
    assert "two images have the id g" in sentence(result)
    assert not (tmp_path / "results").exists()


def test_detect_has_test_options(run: Path, data: Path, tmp_path: Path) -> None:
    detections = {}
    for name, options in {
        "plain": [],
        "few": ["--test.max-detections", 3],
        "many": ["--test.scales", 48, 64, "--test.iterations", 2, "--test.voting"],
    }.items():
        assert ohem("detect", run, data / "JPEGImages" / "g.png", "--out", tmp_path / name, *options).code == 0
        (detections[name],) = json.loads((tmp_path / name / "detections.json").read_text())
    assert detections["few"]["scores"] == detections["plain"]["scores"][:3]
    assert detections["many"]["boxes"] != detections["plain"]["boxes"]
    assert (np.array(detections["many"]["boxes"]) <= [80, 64, 80, 64]).all()


def test_detect_draws_and_lists_the_detections(run: Path, data: Path, tmp_path: Path) -> None:
    images, out = [data / "JPEGImages" / f"{stem}.png" for stem in "gh"], tmp_path / "out"
    assert ohem("detect", run, *images, "--out", out, "--score", 0.2).code == 0
    entries = json.loads((out / "detections.json").read_text())
    assert [entry["image"] for entry in entries] == [str(path) for path in images]
    for path, entry in zip(images, entries, strict=True):
        assert len(entry["boxes"]) == len(entry["labels"]) == len(entry["scores"]) > 0
        assert set(entry["labels"]) <= set(NAMES)
        assert entry["scores"] == sorted(entry["scores"], reverse=True)
        boxes = np.array(entry["boxes"])
        assert (boxes >= 0).all()
        assert (boxes <= [80, 64, 80, 64]).all()
        with Image.open(path) as before, Image.open(out / f"{path.stem}.jpg") as after:
            assert before.size == after.size
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "g.jpg", "h.jpg"]


def test_detect_refuses_no_image_and_an_unreadable_image(run: Path, tmp_path: Path) -> None:
    assert ohem("detect", run, "--out", tmp_path / "out").code == 2
    (tmp_path / "note.jpg").write_text("no image")
    result = ohem("detect", run, tmp_path / "note.jpg", "--out", tmp_path / "out")
    assert result.code == 2
    assert "note.jpg" in result.err
    assert not (tmp_path / "out").exists()


def test_proposals_are_made_once(data: Path) -> None:
    cache = data / "Proposals" / "test.selective-search-fast.safetensors"
    assert ohem("propose", f"{data}:test").code == 0
    made = cache.stat().st_mtime_ns
    assert ohem("propose", f"{data}:test").code == 0
    assert cache.stat().st_mtime_ns == made


def test_several_sources_are_concatenated(tmp_path: Path) -> None:
    a = make_toy(tmp_path / "a", {"train": "ab"})
    b = make_toy(tmp_path / "b", {"train": "bcd", "test": "e"})
    options = training(a, steps=1, test=None)
    at = options.index(f"{a}:train")
    options[at : at + 1] = [f"{a}:train", f"{b}:train"]
    assert ohem("train", tmp_path / "run", *options, "--data.test", f"{b}:test").code == 0
    assert ohem("eval", tmp_path / "run").code == 0


@pytest.mark.filterwarnings("ignore:.* has no object of .* of the classes")  # in so few images
def test_demo_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with children_in_this_process():
        result = ohem("demo", folder, "--steps", 3, "--train-images", 3, "--test-images", 2)
    assert result.code == 0, result.err
    reports = [json.loads((folder / method / "eval.json").read_text()) for method in ("frcn", "ohem")]
    assert all(f"{report['map']:.1f}" in result.out for report in reports)
    pictures = list((folder / "pictures").iterdir())
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 320
    recipes = [read_run(folder / method) for method in ("frcn", "ohem")]
    assert {recipe.model.weights for recipe in recipes} == {str(folder / "pretrained.safetensors")}
    assert load_weights(tiny(), folder / "pretrained.safetensors")
