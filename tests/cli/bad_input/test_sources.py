"""Bad data sets on the command line: folders, splits, images and proposals."""

from pathlib import Path

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training


def test_missing_folder(run: Path, tmp_path: Path) -> None:
    text = sentence(ohem("train", run, *training(tmp_path / "nowhere")))
    assert str(tmp_path / "nowhere") in text
    assert "does not exist" in text
    assert not run.exists()


def test_missing_split_names_existing_splits(run: Path, data: Path) -> None:
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


def test_proposals_of_other_settings_are_refused(run: Path, data: Path) -> None:
    text = sentence(ohem("train", run, *training(data), "--proposals.seed", 3))
    assert "seed 0, want 3" in text
    assert "train.selective-search-fast.safetensors" in text


def test_missing_mat_file(run: Path, data: Path, tmp_path: Path) -> None:
    assert "none.mat" in sentence(ohem("train", run, *training(data), "--proposals.files", tmp_path / "none.mat"))
