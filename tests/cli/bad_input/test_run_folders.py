"""Run folders that belong to other runs, that are damaged, or that were moved."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training


def test_folder_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in sentence(ohem("train", tmp_path / "file" / "run", *training(data)))


def test_run_of_another_recipe_is_not_changed(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    text = sentence(ohem("train", run, *training(data, recipe="demo-frcn")))
    assert "demo-ohem" in text
    assert "sampler.name" in text
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_folder_that_is_not_a_run_is_not_changed(run: Path, data: Path) -> None:
    run.mkdir()
    (run / "thesis.txt").write_text("a chapter")
    assert str(run) in sentence(ohem("train", run, *training(data)))
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
    assert "is not a run" in sentence(ohem("eval", run))


def test_truncated_checkpoint_falls_back_to_previous(run: Path, data: Path) -> None:
    options = training(data, steps=4)
    assert ohem("train", run, *options, "--run.checkpoint-every", 2).code == 0
    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    newest = run / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged .* the previous checkpoint is used"):
        assert ohem("train", run, *options, "--run.checkpoint-every", 2).code == 0
    resumed = torch.load(run / "checkpoint.pt", weights_only=True)
    assert resumed["step"] == 4
    assert all(torch.equal(value, resumed["model"][name]) for name, value in whole["model"].items())


def test_damaged_checkpoint_without_a_previous_one(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    (run / "checkpoint.pt").write_bytes(b"no")
    assert "no whole checkpoint" in sentence(ohem("train", run, *training(data)))


def test_finished_run_has_nothing_to_train(run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data, steps=2)).code == 0
    assert "steps already" in ohem("train", run, *training(data, steps=2)).out
    assert f"{run} is at step 2 already: give --solver.steps 2 or more" in sentence(
        ohem("train", run, *training(data, steps=1))
    )


@pytest.mark.filterwarnings("ignore:.* has no object of 1 of the classes")
@pytest.mark.parametrize("command", [["eval"], ["train"]])
def test_checkpoint_of_another_detector(command: list[str], run: Path, data: Path, tmp_path: Path) -> None:
    options = [training(data), [*training(data), "--data.classes", "blue", "red", "green"]]
    runs = [run, tmp_path / "other"]
    for folder, arguments in zip(runs, options, strict=True):
        assert ohem("train", folder, *arguments).code == 0
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
def test_damaged_recipe(content: bytes, run: Path, data: Path) -> None:
    assert ohem("train", run, *training(data)).code == 0
    (run / "recipe.yaml").write_bytes(content)
    assert f"{run / 'recipe.yaml'} cannot be read" in sentence(ohem("eval", run))


def test_run_resumes_without_the_file_of_its_initial_weights(run: Path, data: Path, tmp_path: Path) -> None:
    first, weights = tmp_path / "first", tmp_path / "weights.pt"
    assert ohem("train", first, *training(data)).code == 0
    shutil.copy(first / "checkpoint.pt", weights)
    assert ohem("train", run, *training(data), "--model.weights", weights).code == 0
    weights.unlink()
    assert ohem("train", run, *training(data, steps=4), "--model.weights", weights).code == 0


def test_run_of_another_accelerator_is_evaluated_on_this_machine(run: Path, data: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert ohem("train", run, *training(data)).code == 0
    recipe = run / "recipe.yaml"
    text = recipe.read_text().replace("accelerator: cpu", "accelerator: cuda")
    recipe.write_text("".join(line for line in text.splitlines(True) if not line.startswith("checksum")))
    with pytest.warns(UserWarning, match="was trained on cuda, which this machine does not have"):
        assert ohem("eval", run).code == 0
