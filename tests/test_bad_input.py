"""Bad input, one test for each kind: the command line answers in one sentence that names the file, field and remedy."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ohem.training.metrics import read_metrics
from tests.command_line import ohem, sentence
from tests.toy import make_toy, training
from tests.training.test_build import write_mat


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data with the proposals of both splits."""
    folder = make_toy(tmp_path_factory.mktemp("original") / "toy")
    assert ohem("propose", f"{folder}:train", f"{folder}:test", "--jobs", 1).code == 0
    return folder


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(original, tmp_path / "toy"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def edit_xml(data: Path, old: str, new: str, stem: str = "a") -> Path:
    path = data / "Annotations" / f"{stem}.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def without_proposals(data: Path) -> None:
    """An image changes: the proposals of the old one are gone with it."""
    shutil.rmtree(data / "Proposals")


# Folders, splits, ids


def test_missing_folder(run: Path, tmp_path: Path) -> None:
    text = sentence(ohem("train", run, *training(tmp_path / "nowhere")))
    assert str(tmp_path / "nowhere") in text
    assert "does not exist" in text
    assert not run.exists()


def test_missing_split_file_names_those_there_are(run: Path, data: Path) -> None:
    text = sentence(ohem("train", run, "--recipe", "demo-ohem", "--data.train", f"{data}:trian"))
    assert "trian.txt" in text
    assert "test, train" in text


def test_no_source(run: Path) -> None:
    assert "ohem propose FOLDER:SPLIT" in sentence(ohem("propose"))
    assert "--data.train FOLDER:SPLIT" in sentence(ohem("train", run, "--recipe", "demo-ohem"))


def test_id_without_image(run: Path, data: Path) -> None:
    (data / "JPEGImages" / "c.png").unlink()
    assert "'c'" in sentence(ohem("train", run, *training(data)))


def test_id_without_xml(run: Path, data: Path) -> None:
    (data / "Annotations" / "c.xml").unlink()
    assert "c.xml" in sentence(ohem("train", run, *training(data)))


# Annotations


def test_malformed_xml(run: Path, data: Path) -> None:
    path = edit_xml(data, "</annotation>", "")
    text = sentence(ohem("train", run, *training(data)))
    assert str(path) in text
    assert "well-formed" in text


def test_entity_bomb(run: Path, data: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]><annotation>'
    path = edit_xml(data, "<annotation>", bomb)
    text = sentence(ohem("train", run, *training(data)))
    assert str(path) in text
    assert "entities" in text


def test_no_size(run: Path, data: Path) -> None:
    path = edit_xml(data, "<size><width>80</width><height>64</height><depth>3</depth></size>", "")
    with pytest.warns(UserWarning, match=f"took the size of 1 image from the image, .* the first of them {path}"):
        assert ohem("train", run, *training(data)).code == 0


def test_size_that_differs_from_the_image(run: Path, data: Path) -> None:
    edit_xml(data, "<width>80</width>", "<width>800</width>")
    text = sentence(ohem("train", run, *training(data)))
    assert "800 x 64" in text
    assert "80 x 64" in text


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((-10, 5, 20, 30), "clipped 1 box reaching outside the image"),
        ((5, 5, 120, 30), "clipped 1 box reaching outside the image"),
        ((30, 5, 10, 30), "skipped 1 box inverted or without area"),
        ((10, 10, 10, 10), "skipped 1 box inverted or without area"),
    ],
)
def test_boxes_that_can_be_mended_are_counted_in_one_warning(
    run: Path, data: Path, box: tuple[int, int, int, int], told: str
) -> None:
    xmin, ymin, xmax, ymax = box
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    edit_xml(data, "</annotation>", f"<object><name>red</name><bndbox>{corners}</bndbox></object></annotation>")
    with pytest.warns(UserWarning, match=told) as warned:
        assert ohem("train", run, *training(data)).code == 0
    assert len(warned) == 1


def test_class_in_test_that_is_not_in_train(run: Path, data: Path) -> None:
    path = edit_xml(data, "<name>red</name>", "<name>rde</name>", stem="g")
    text = sentence(ohem("train", run, *training(data)))
    assert str(path) in text
    assert "'rde'" in text
    assert "did you mean 'red'" in text


def test_no_object_in_any_image(run: Path, data: Path) -> None:
    for path in (data / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().split("<object>")[0].removesuffix("</annotation>\n") + "</annotation>")
    assert "has no object" in sentence(ohem("train", run, *training(data)))


def test_image_with_no_object_is_trained_on(run: Path, data: Path) -> None:
    path = data / "Annotations" / "a.xml"
    path.write_text(path.read_text().split("<object>")[0] + "</annotation>")
    (data / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    assert ohem("train", run, *training(data)).code == 0
    rows = read_metrics(run)
    assert float(rows[-1]["chosen"]) > 0
    assert float(rows[-1]["loss"]) > 0


# Images


def test_truncated_jpeg(run: Path, data: Path) -> None:
    without_proposals(data)
    path = data / "JPEGImages" / "c.jpg"
    Image.open(path.with_suffix(".png")).save(path)
    path.with_suffix(".png").unlink()
    path.write_bytes(path.read_bytes()[:-200])
    assert str(path) in sentence(ohem("train", run, *training(data)))


def damage_behind_its_header(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_image_truncated_behind_its_header(run: Path, data: Path, tmp_path: Path, workers: int) -> None:
    """Proposals of the release's kind do not look at it, so training does."""
    path = data / "JPEGImages" / "c.png"
    damage_behind_its_header(path)
    mat = write_mat(tmp_path / "all.mat", "abcdefgh")
    options = ["--data.workers", workers, "--proposals.files", mat]
    text = sentence(ohem("train", run, *training(data, steps=6), *options))
    assert str(path) in text
    assert text.count(str(path)) == 1


def test_image_truncated_after_its_proposals_were_made(run: Path, data: Path) -> None:
    """It has changed, so they are made anew, before the first step."""
    path = data / "JPEGImages" / "c.png"
    damage_behind_its_header(path)
    with pytest.warns(UserWarning, match=f"1 image files have changed .*{path}"):
        text = sentence(ohem("train", run, *training(data)))
    assert f"{path} is cut short or not an image" in text
    assert not (run / "metrics.csv").exists()


@pytest.mark.parametrize("kind", ["grey", "cmyk", "sixteen"])
def test_grey_cmyk_and_16_bit_images_are_read(run: Path, data: Path, kind: str) -> None:
    without_proposals(data)
    for path in sorted((data / "JPEGImages").glob("*.png")):
        image = Image.open(path).convert("RGB")
        if kind == "cmyk":
            path.unlink()
            image.convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
        elif kind == "grey":
            image.convert("L").save(path)
        else:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    assert ohem("train", run, *training(data)).code == 0
    assert (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("recipe", ["demo-ohem", "demo-frcn"])
def test_no_proposal_in_an_image(run: Path, data: Path, recipe: str) -> None:
    without_proposals(data)
    for stem in "gh":
        Image.fromarray(np.full((64, 80, 3), 7, np.uint8)).save(data / "JPEGImages" / f"{stem}.png")
    shutil.copy(data / "JPEGImages" / "g.png", data / "JPEGImages" / "a.png")
    shutil.copy(data / "JPEGImages" / "g.png", data / "JPEGImages" / "b.png")
    (data / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    assert ohem("train", run, *training(data, steps=3, recipe=recipe)).code == 0
    assert ohem("eval", run).code == 0
    assert json.loads((run / "eval.json").read_text())["map"] == 0


# Options


def test_unknown_recipe_option_and_value_name_the_nearest(run: Path, data: Path) -> None:
    assert "did you mean demo-ohem" in sentence(ohem("train", run, "--recipe", "demo-ohm"))
    assert "--solver.lr?" in sentence(ohem("train", run, *training(data), "--solver.lrr", 1))
    assert "Did you mean" in sentence(ohem("train", run, *training(data), "--model.backbone", "vgg61"))
    assert "--solver.lr" in sentence(ohem("train", run, *training(data), "--solver.lr", "fast"))
    assert not run.exists()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--test.iterations", 0, "--test.iterations 0"),
        ("--test.scales", 0, "--test.scales 0"),
        ("--test.scalse", 480, "--test.scales"),
        ("--test.merge", "nearby", "nearest"),
        ("--test.voters", "none", "all"),
    ],
)
def test_options_of_testing(run: Path, data: Path, option: str, value: object, told: str) -> None:
    assert ohem("train", run, *training(data, steps=1)).code == 0
    assert told in sentence(ohem("eval", run, option, value))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--run.log-every", 0),
        ("--run.checkpoint-every", 0),
        ("--solver.decay-every", 0),
        ("--solver.images", 0),
        ("--solver.steps", 0),
        ("--sampler.batch-size", 0),
        ("--sampler.batch-size", -3),
        ("--sampler.fg-fraction", 2.5),
        ("--sampler.nms-iou", float("nan")),
        ("--data.short", 0),
        ("--solver.lr", -0.5),
    ],
)
def test_numbers_out_of_range(run: Path, data: Path, option: str, value: object) -> None:
    line = [word for word in training(data) if word not in ("--data.short", 64, "--solver.images", "--solver.steps", 2)]
    text = sentence(ohem("train", run, *line, f"{option}={value}"))
    assert f"{option} {value} is out of range: give " in text
    assert not run.exists()


def test_scales_that_are_no_lengths(run: Path, data: Path) -> None:
    assert "--data.scales -1" in sentence(ohem("train", run, *training(data), "--data.scales", 480, -1))
    assert not run.exists()


@pytest.mark.parametrize("words", [[-1], [8, "--model.implementation", "loss_layer"]])
def test_rescored_that_means_nothing(run: Path, data: Path, words: list[object]) -> None:
    assert "--model.rescored" in sentence(ohem("train", run, *training(data), "--model.rescored", *words))
    assert not run.exists()


def test_unknown_command_names_the_nearest() -> None:
    assert "train" in sentence(ohem("trian"))


def test_unknown_yaml_key_names_the_nearest(run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("solver:\n  momentun: 0.5\n")
    text = sentence(ohem("train", run, *training(data), "--config", config))
    assert "momentun" in text
    assert "momentum" in text
    assert str(config) in text


def test_malformed_and_missing_yaml(run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    assert str(config) in sentence(ohem("train", run, *training(data), "--config", config))
    config.write_text("solver: [1\n")
    assert str(config) in sentence(ohem("train", run, *training(data), "--config", config))


def test_a_run_goes_on_without_the_file_that_it_started_from(run: Path, data: Path, tmp_path: Path) -> None:
    first, weights = tmp_path / "first", tmp_path / "weights.pt"
    assert ohem("train", first, *training(data)).code == 0
    shutil.copy(first / "checkpoint.pt", weights)
    assert ohem("train", run, *training(data), "--model.weights", weights).code == 0
    weights.unlink()
    assert ohem("train", run, *training(data, steps=4), "--model.weights", weights).code == 0


def test_weights_that_are_not_there(run: Path, data: Path) -> None:
    assert "nowhere.pth" in sentence(ohem("train", run, *training(data), "--model.weights", "nowhere.pth"))
    assert ohem("train", run, *training(data)).code == 0  # the slip of the first try does not stick to the folder


@pytest.mark.parametrize(
    "option", [["--run.accelerator", "cuda"], ["--run.accelerator", "abacus"], ["--devices", "0"], ["--devices", "two"]]
)
def test_devices_that_the_machine_lacks(run: Path, data: Path, option: list[str]) -> None:
    if torch.cuda.is_available() and "cuda" in option:
        pytest.skip("this machine has a GPU")
    options = [word for word in training(data) if word not in ("--run.accelerator", "cpu")]
    text = sentence(ohem("train", run, *options, *option))
    assert "do not fit this machine" in text
    assert option[1] in text


def test_a_folder_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in sentence(ohem("train", tmp_path / "file" / "run", *training(data)))


# Run folders


def test_run_folder_of_another_recipe_is_left_as_it_was(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    text = sentence(ohem("train", run, *training(data, recipe="demo-frcn")))
    assert "demo-ohem" in text
    assert "sampler.name" in text
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_folder_that_is_no_run_is_left_as_it_was(run: Path, data: Path) -> None:
    run.mkdir()
    (run / "thesis.txt").write_text("dear")
    assert str(run) in sentence(ohem("train", run, *training(data)))
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
    assert "is not a run" in sentence(ohem("eval", run))


def test_checkpoint_cut_short_falls_back_to_the_one_before(run: Path, data: Path) -> None:
    options = training(data, steps=4)
    assert ohem("train", run, *options, "--run.checkpoint-every", 2).code == 0
    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    newest = run / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged .* falling back"):
        assert ohem("train", run, *options, "--run.checkpoint-every", 2).code == 0
    again = torch.load(run / "checkpoint.pt", weights_only=True)
    assert again["step"] == 4
    assert all(torch.equal(value, again["model"][name]) for name, value in whole["model"].items())


def test_no_whole_checkpoint(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    (run / "checkpoint.pt").write_bytes(b"no")
    assert "no whole checkpoint" in sentence(ohem("train", run, *training(data)))


def test_a_run_that_is_further_than_it_is_to_go(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data, steps=2)).code == 0
    assert "there is nothing left to train" in ohem("train", run, *training(data, steps=2)).out
    assert f"{run} is at step 2 already: give --solver.steps 2 or more" in sentence(
        ohem("train", run, *training(data, steps=1))
    )


@pytest.mark.filterwarnings("ignore:.* has no object of 1 of the classes")
@pytest.mark.parametrize("command", [["eval"], ["train"]])
def test_a_checkpoint_of_another_detector(command: list[str], run: Path, data: Path, tmp_path: Path) -> None:
    options = [training(data), [*training(data), "--data.classes", "blue", "red", "green"]]
    runs = [run, tmp_path / "other"]
    for each, line in zip(runs, options, strict=True):
        assert ohem("train", each, *line).code == 0
    shutil.copy(runs[1] / "checkpoint.pt", run / "checkpoint.pt")
    text = sentence(ohem(*command, run, *(options[0] if command == ["train"] else [])))
    assert f"the checkpoint of {run} is of another detector, or other classes" in text


@pytest.mark.parametrize(
    "content",
    [
        b"recipe: \xff\xfe",
        b"recipe: x\ndata:\n  short: big\n",
        b"recipe: x\ndata:\n  flip: 3\n",
        b"recipe: x\ndata:\n  long: -1\n",
        b"recipe: x\nsolver:\n  lr: .inf\n",
    ],
)
def test_a_damaged_recipe(content: bytes, run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    (run / "recipe.yaml").write_bytes(content)
    assert f"{run / 'recipe.yaml'} cannot be read" in sentence(ohem("eval", run))


@pytest.mark.parametrize("content", ["solver: 3\n", "[1, 2]\n", "", "{}\n"])
def test_yaml_that_is_not_nested(content: str, run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    text = sentence(ohem("train", run, *training(data), "--config", config))
    assert str(config) in text
    assert "recipe.yaml" in text


def test_a_run_of_a_machine_that_is_not_here_is_tested_all_the_same(run: Path, data: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert ohem("train", run, *training(data)).code == 0
    recipe = run / "recipe.yaml"
    text = recipe.read_text().replace("accelerator: cpu", "accelerator: cuda")
    recipe.write_text("".join(line for line in text.splitlines(True) if not line.startswith("checksum")))
    with pytest.warns(UserWarning, match="was trained on cuda, which is not here"):
        assert ohem("eval", run).code == 0


def test_a_recipe_must_be_named(run: Path) -> None:
    assert "`ohem recipes` lists them" in sentence(ohem("train", run))


def test_places_of_results_are_checked_before_the_detections(run: Path, data: Path, tmp_path: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    assert f"--out {tmp_path} is a folder" in sentence(ohem("eval", run, "--out", tmp_path))
    taken = tmp_path / "taken"
    taken.touch()
    assert f"--submit {taken} is no folder" in sentence(ohem("eval", run, "--submit", taken))


def contents(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_results_are_not_written_over_other_files(run: Path, data: Path, tmp_path: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    (tmp_path / "thesis.txt").write_text("dear")
    (tmp_path / "link.json").symlink_to(data / "Annotations" / "g.xml")
    of_run = [run / name for name in ("recipe.yaml", "checkpoint.pt", "metrics.csv")]
    of_data = [data / "Annotations" / "a.xml", data / "JPEGImages" / "g.png", data / "ImageSets" / "Main" / "test.txt"]
    before = contents(run, data, tmp_path)
    for path in [*of_run, *of_data, tmp_path / "thesis.txt", tmp_path / "link.json"]:
        assert str(path) in sentence(ohem("eval", run, "--out", path))
    for folder in (data, data / "JPEGImages", data / "Annotations"):
        assert f"--submit {folder} is a folder of the data" in sentence(ohem("eval", run, "--submit", folder))
    assert contents(run, data, tmp_path) == before
    for _ in range(2):  # an earlier report is replaced
        assert ohem("eval", run, "--out", tmp_path / "mine.json").code == 0


def test_a_chart_is_not_drawn_over_a_picture(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    before = contents(run, data)
    assert "would be overwritten" in sentence(ohem("loss", run, "--plot", data / "JPEGImages" / "a.png"))
    assert contents(run, data) == before


def test_the_report_knows_what_it_was_made_of(run: Path, data: Path) -> None:
    def digests() -> tuple[str, str]:
        assert ohem("eval", run).code == 0
        report = json.loads((run / "eval.json").read_text())
        return report["weights"], report["data"]

    assert ohem("train", run, *training(data)).code == 0
    first = digests()
    assert digests() == first
    edit_xml(data, "<xmin>", "<xmin>1", stem="g")
    second = digests()
    assert (second[0], second[1] != first[1]) == (first[0], True)
    assert ohem("train", run, *training(data, steps=3)).code == 0
    third = digests()
    assert (third[0] != second[0], third[1]) == (True, second[1])


def test_a_config_that_is_a_folder(run: Path, data: Path, tmp_path: Path) -> None:
    text = sentence(ohem("train", run, *training(data), "--config", tmp_path))
    assert f"--config {tmp_path}: Is a directory" in text
    assert "YAML" not in text


@pytest.mark.parametrize("bytes_allowed", [8_000, 400_000])
def test_a_full_disk(bytes_allowed: int, run: Path, data: Path) -> None:
    """A limit on the size of files stands in for it."""
    resource = pytest.importorskip("resource")  # not on Windows
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))
    line = [sys.executable, "-m", "ohem.cli", "train", str(run), *map(str, training(data))]
    done = subprocess.run(line, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "checkpoint.pt: File too large" in done.stderr
    assert not list(run.glob(".*"))


def test_loss_that_is_not_finite_stops_and_keeps_the_evidence(run: Path, data: Path) -> None:
    options = [*training(data, steps=40), "--solver.clip", 0, "--solver.warmup", 0, "--run.checkpoint-every", 1]
    with pytest.warns(RuntimeWarning):
        text = sentence(ohem("train", run, *options, "--solver.lr", 1e30))
    evidence = json.loads((run / "non-finite-0.json").read_text())
    assert "not finite" in text
    assert evidence["images"][0] in text
    assert len(evidence["rois"]) == len(evidence["losses"]) > 0
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert saved["step"] == evidence["step"] - 1


def test_gradient_that_is_not_finite_stops_before_a_checkpoint_of_it(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_fabric.Fabric.clip_gradients", lambda *_, **__: torch.tensor(torch.inf))
    text = sentence(ohem("train", run, *training(data), "--run.checkpoint-every", 1))
    assert "the gradient is not finite at step 1" in text
    assert not (run / "checkpoint.pt").exists()


# Proposals


def test_proposals_of_other_settings_are_refused(run: Path, data: Path) -> None:
    text = sentence(ohem("train", run, *training(data), "--proposals.seed", 3))
    assert "seed 0, want 3" in text
    assert "train.selective-search-fast.safetensors" in text


def test_mat_files_without_the_images(run: Path, data: Path, tmp_path: Path) -> None:
    assert "none.mat" in sentence(ohem("train", run, *training(data), "--proposals.files", tmp_path / "none.mat"))
