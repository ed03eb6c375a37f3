"""A run folder knows the digests of its input, has one writer, and recovers from killed commands."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ohem.config.recipe_file import NAME, read_run
from ohem.config.recipes import RECIPES
from ohem.errors import InputError
from ohem.training.run_folder import check_run, create_or_resume, sole_writer
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training
from tests.io.test_locks import another_process

RECIPE = RECIPES["demo-ohem"].recipe
DEAD = 2**22 + 1  # no process has this number: it is above the highest that Linux gives


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns toy data and a run of two steps on them."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_toy(folder / "toy")
    assert ohem("train", folder / "run", *training(data)).code == 0
    return data, folder / "run"


@pytest.fixture
def data(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "toy"))


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def move_box(data: Path) -> None:
    path = data / "Annotations" / "a.xml"
    text = path.read_text()
    path.write_text(re.sub("<ymin>.*?<", "<ymin>1<", text, count=1))
    assert path.read_text() != text


def swap_pixels(data: Path) -> None:
    shutil.copy(data / "JPEGImages" / "b.png", data / "JPEGImages" / "a.png")


def shorten_split(data: Path) -> None:
    (data / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\nd\ne\n")


@pytest.mark.parametrize(
    ("change", "part"), [(move_box, "annotations"), (swap_pixels, "image files"), (shorten_split, "image files")]
)
def test_changed_data_are_refused_and_nothing_is_lost(
    change: Callable[[Path], None], part: str, data: Path, run: Path
) -> None:
    change(data)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    text = sentence(ohem("train", run, *training(data, steps=4)))
    assert f"the {part} of {data}:train are not those that {run} was made of" in text
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_changed_proposals_are_refused(data: Path, run: Path) -> None:
    recipe = read_run(run)
    made_of = {"images": "a", "annotations": "b", "proposals": "c"}
    content = yaml.safe_load((run / NAME).read_text())
    assert content["made_of"].keys() == made_of.keys()
    with pytest.raises(InputError, match="the proposals of"):
        create_or_resume(run, "demo-ohem", recipe, {**content["made_of"], "proposals": "0"})


def test_equal_data_elsewhere_go_on(data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ohem("train", "run", *training(Path("toy"), steps=3)).code == 0
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 3
    assert read_run(run).data.train == ("toy:train",)


def test_other_initial_weights_are_refused_and_equal_ones_go_on(
    data: Path, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second, other = (tmp_path / f"{name}.pt" for name in ("first", "second", "other"))
    for path in (first, second):
        shutil.copy(trained[1] / "checkpoint.pt", path)
    state = torch.load(first, weights_only=True)["model"]
    torch.save({name: value * 1.5 for name, value in state.items()}, other)
    run = tmp_path / "new"
    assert ohem("train", run, *training(data), "--model.weights", first).code == 0
    assert ohem("train", run, *training(data, steps=3), "--model.weights", second).code == 0
    assert "initial weights" in sentence(ohem("train", run, *training(data, steps=4), "--model.weights", other))
    assert "initial weights" in sentence(ohem("train", run, *training(data, steps=4)))


def test_a_second_training_is_refused(data: Path, run: Path) -> None:
    before = (run / "checkpoint.pt").read_bytes()
    with another_process(run / ".lock"):
        assert f"the run {run} is in use" in sentence(ohem("train", run, *training(data, steps=4)))
    assert (run / "checkpoint.pt").read_bytes() == before


def test_one_of_several_machines_holds_the_lock(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object) -> None:
        raise RuntimeError("it came so far")

    monkeypatch.setattr("ohem.training.run.launched", launched)
    with another_process(run / ".lock"):
        for name, value in {"LOCAL_RANK": "0", "RANK": "2", "WORLD_SIZE": "4"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RuntimeError, match="it came so far"):
            ohem("train", run, *training(data, steps=4))
        monkeypatch.setenv("RANK", "0")
        assert f"the run {run} is in use" in sentence(ohem("train", run, *training(data, steps=4)))


def test_what_a_kill_leaves_is_removed(data: Path, run: Path) -> None:
    left = [run / f".{name}.{DEAD}.tmp" for name in ("metrics.csv", "checkpoint.pt", "loss_all.csv")]
    left.append(run / "snapshots" / f".step-1.safetensors.{DEAD}.tmp")
    left[-1].parent.mkdir()
    of_the_living = run / f".eval.json.{os.getppid()}.tmp"
    for path in [*left, of_the_living, run / ".lock"]:
        path.write_bytes(b"half")
    assert ohem("train", run, *training(data, steps=3)).code == 0
    assert not any(path.exists() for path in left)
    assert of_the_living.exists()


def test_a_kill_at_the_first_file_does_not_spoil_the_folder(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "new"
    run.mkdir()
    (run / ".lock").touch()
    (run / f".{NAME}.{DEAD}.tmp").write_text("rec")
    assert ohem("train", run, *training(data)).code == 0
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "metrics.csv", "mining", NAME]


def test_a_folder_that_is_no_run_gets_nothing(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(InputError, match="is not a run"):
        check_run(tmp_path, "demo-ohem", RECIPE)


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), sole_writer(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a" / "b").exists()


def test_a_changed_recipe_is_said(run: Path) -> None:
    path = run / NAME
    path.write_text(path.read_text().replace("score: 0.001", "score: 0.011"))
    with pytest.warns(UserWarning, match=r"recipe\.yaml was changed after it was written"):
        assert read_run(run).test.score == 0.011
    path.write_text("# a note\n" + path.read_text().replace("score: 0.011", "score: 0.001"))
    read_run(run)


def test_a_run_without_digests_is_resumed_with_a_warning(data: Path, run: Path) -> None:
    content = yaml.safe_load((run / NAME).read_text())
    del content["made_of"], content["checksum"]
    (run / NAME).write_text(yaml.safe_dump(content))
    with pytest.warns(UserWarning, match="without digests of the data"):
        assert ohem("train", run, *training(data, steps=3)).code == 0
    assert yaml.safe_load((run / NAME).read_text())["made_of"].keys() == {"images", "annotations", "proposals"}


@pytest.mark.parametrize("made_of", ["made_of: 3\n", "made_of: {images: 3}\n", "recipe: [1]\n"])
def test_damaged_heads(made_of: str, run: Path) -> None:
    content = yaml.safe_load((run / NAME).read_text())
    del content["checksum"]
    content |= yaml.safe_load(made_of)
    (run / NAME).write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=f"{NAME} cannot be read"):
        read_run(run)


def test_the_end_of_a_training_names_its_files_and_the_next_commands(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    lines = ohem("train", run, *training(data, steps=1)).out.splitlines()
    assert lines[-3:] == [
        f"wrote {run / 'checkpoint.pt'} and {run / 'metrics.csv'}",
        f"next: ohem eval '{run}'",
        f"      ohem detect '{run}' IMAGE --out FOLDER",
    ]


def test_relative_data_of_a_run_are_explained_in_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    assert ohem("train", tmp_path / "run", *training(Path(data.name), steps=1)).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    message = sentence(ohem("eval", tmp_path / "run"))
    assert f"which the recipe of {tmp_path / 'run'} names, does not exist: it is relative to the folder" in message
    assert "--data SOURCE" in message


def test_a_data_set_in_place_of_a_run_is_explained(data: Path) -> None:
    for command in (["eval", data], ["detect", data, data / "JPEGImages" / "a.png", "--out", data.parent / "out"]):
        message = sentence(ohem(*command))
        assert f"{data} is not a run (it has no recipe.yaml): it is a data set: name a run folder" in message
