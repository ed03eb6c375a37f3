"""The commands, run as a person would: what they print and write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ohem.training.build import check
from ohem.training.recipes import RECIPES
from tests.command_line import ohem, sentence
from tests.toy import NAMES, make_toy, training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on the toy data, whose proposals it makes by itself."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert ohem("train", folder, *training(data, steps=60)).code == 0
    return folder


def test_answering_does_not_load_torch() -> None:
    program = "import sys, ohem.cli, ohem; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_help_and_version() -> None:
    listed = ohem("--help").out
    learning, looking = ("train", "eval", "loss", "detect", "bootstrap"), ("demo", "propose", "recipes")
    commands = [*learning, *looking, "compare", "reproduce", "bench"]
    assert all(command in listed for command in commands)
    assert "--solver.lr" in ohem("train", "--help").out
    assert ohem("--version").out.strip()


OF_TORCHVISION = [name for name, entry in RECIPES.items() if entry.recipe.model.detector != "fast_rcnn"]


def test_every_recipe_is_one_that_trains() -> None:
    for entry in RECIPES.values():
        check(entry.recipe)


def test_recipes_lists_each_with_its_command_and_the_papers_figure() -> None:
    listed = ohem("recipes").out
    for name, entry in RECIPES.items():
        assert f"--recipe {name}" in listed
        assert entry.paper is None or f"mAP paper {entry.paper}" in listed


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OF_TORCHVISION])
def test_the_paper_s_settings(name: str) -> None:
    recipe = RECIPES[name].recipe
    assert recipe.solver.images * recipe.sampler.batch_size == (2048 if "-all" in name else 128)
    assert recipe.solver.images == (1 if "-n1" in name else 2)
    assert (recipe.solver.momentum, recipe.solver.weight_decay, recipe.solver.gamma) == (0.9, 0.0005, 0.1)
    if name.startswith("voc"):
        assert (recipe.data.short, recipe.data.long) == (600, 1000)
        assert (recipe.solver.steps, recipe.solver.decay_every) in {(80_000, 30_000), (200_000, 40_000)}


def test_train_makes_what_is_missing_and_resolves_the_recipe(data: Path, run: Path) -> None:
    assert (data / "Proposals" / "train.selective-search-fast.safetensors").exists()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["recipe"] == "demo-ohem"
    assert recipe["data"]["classes"] == list(NAMES)
    assert recipe["solver"]["steps"] == 60
    assert recipe["model"]["backbone"] == "tiny"


def test_options_win_over_yaml_and_yaml_over_the_recipe(data: Path, tmp_path: Path) -> None:
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
    told = report_of(run)["test"]
    assert (plain["test"]["scales"], plain["test"]["iterations"], plain["test"]["voting"]) == ([], 1, False)
    assert (told["scales"], told["long"], told["iterations"], told["voting"]) == ([48, 64, 80], 120, 2, True)
    assert ohem("eval", run, *options, "--test.merge", "nearest").code == 0
    assert ohem("eval", run, "--test.scales", 64).code == 0
    assert report_of(run)["ap"] == plain["ap"]


def test_testing_is_as_in_the_recipe_unless_the_line_says_otherwise(data: Path, run: Path, tmp_path: Path) -> None:
    """And it may differ when a run goes on."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    options = ["--test.voting", "--test.iterations", 3, "--test.scales", 48, 64, "--test.score", 0.25]
    assert ohem("train", other, *training(data, steps=60), *options).code == 0
    assert ohem("eval", other).code == 0
    told = report_of(other)["test"]
    assert (told["voting"], told["iterations"], told["scales"], told["score"]) == (True, 3, [48, 64], 0.25)
    assert ohem("eval", other, "--test.no-voting", "--test.scales", 72).code == 0
    told = report_of(other)["test"]
    assert (told["voting"], told["iterations"], told["scales"], told["score"]) == (False, 3, [72], 0.25)
    assert ohem("train", other, *training(data, steps=60), "--data.scales", 48).code == 2


def test_submit_writes_what_was_found(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    shown = ohem("eval", run, "--submit", out)
    assert shown.code == 0
    assert str(out) in shown.out
    assert {path.name for path in out.iterdir()} == {f"comp4_det_test_{name}.txt" for name in NAMES}
    lines = [line.split() for path in out.iterdir() for line in path.read_text().splitlines()]
    assert {line[0] for line in lines} == {"g", "h"}
    boxes = np.array([line[2:] for line in lines], dtype=float)
    assert (boxes[:, :2] >= 1).all()
    assert (boxes[:, 2:] <= [80, 64]).all()
    assert (boxes[:, 2:] > boxes[:, :2] - 1).all()
    assert ohem("detect", run, data / "JPEGImages" / "g.png", "--out", tmp_path / "found").code == 0
    (entry,) = json.loads((tmp_path / "found" / "detections.json").read_text())
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
    shown = ohem("eval", run, "--data", f"{folder}:test", "--submit", tmp_path / "results")
    assert shown.code == 0
    assert "nothing is scored" in shown.out
    assert (run / "eval.json").read_bytes() == before
    ids = {line.split()[0] for p in (tmp_path / "results").iterdir() for line in p.read_text().splitlines()}
    assert ids == {"x", "y"}


def test_submit_of_images_that_share_an_id(run: Path, data: Path, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "other", {"test": "gz"})
    line = ohem("eval", run, "--data", f"{data}:test", f"{other}:test", "--submit", tmp_path / "results")
    assert "two images have the id g" in sentence(line)
    assert not (tmp_path / "results").exists()


def test_detect_as_the_line_says(run: Path, data: Path, tmp_path: Path) -> None:
    found = {}
    for name, options in {
        "plain": [],
        "few": ["--test.max-detections", 3],
        "many": ["--test.scales", 48, 64, "--test.iterations", 2, "--test.voting"],
    }.items():
        assert ohem("detect", run, data / "JPEGImages" / "g.png", "--out", tmp_path / name, *options).code == 0
        (found[name],) = json.loads((tmp_path / name / "detections.json").read_text())
    assert found["few"]["scores"] == found["plain"]["scores"][:3]
    assert found["many"]["boxes"] != found["plain"]["boxes"]
    assert (np.array(found["many"]["boxes"]) <= [80, 64, 80, 64]).all()


def test_detect_draws_and_lists(run: Path, data: Path, tmp_path: Path) -> None:
    pictures, out = [data / "JPEGImages" / f"{stem}.png" for stem in "gh"], tmp_path / "out"
    assert ohem("detect", run, *pictures, "--out", out, "--score", 0.2).code == 0
    entries = json.loads((out / "detections.json").read_text())
    assert [entry["image"] for entry in entries] == [str(path) for path in pictures]
    for path, entry in zip(pictures, entries, strict=True):
        assert len(entry["boxes"]) == len(entry["labels"]) == len(entry["scores"]) > 0
        assert set(entry["labels"]) <= set(NAMES)
        assert entry["scores"] == sorted(entry["scores"], reverse=True)
        boxes = np.array(entry["boxes"])
        assert (boxes >= 0).all()
        assert (boxes <= [80, 64, 80, 64]).all()
        with Image.open(path) as before, Image.open(out / f"{path.stem}.jpg") as after:
            assert before.size == after.size
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "g.jpg", "h.jpg"]


def test_detect_without_pictures_or_with_an_unreadable_one(run: Path, tmp_path: Path) -> None:
    assert ohem("detect", run, "--out", tmp_path / "out").code == 2
    (tmp_path / "note.jpg").write_text("no picture")
    refused = ohem("detect", run, tmp_path / "note.jpg", "--out", tmp_path / "out")
    assert refused.code == 2
    assert "note.jpg" in refused.err
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


@pytest.mark.filterwarnings("ignore:.* has no object of .* of the classes")  # of so few scenes
def test_demo_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shown = ohem("demo", folder, "--steps", 3, "--train-images", 3, "--test-images", 2)
    assert shown.code == 0, shown.err
    reports = [json.loads((folder / arm / "eval.json").read_text()) for arm in ("frcn", "ohem")]
    assert all(f"{report['map']:.1f}" in shown.out for report in reports)
    pictures = list((folder / "pictures").iterdir())
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 320
