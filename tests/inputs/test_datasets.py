"""The classes of a training: given, or those of the annotations."""

from pathlib import Path

import pytest

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training


def test_given_classes_keep_their_order(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="train has no object of 1 of the classes: 'green'"):
        assert ohem("train", tmp_path / "run", *training(data), "--data.classes", "red", "blue", "green").code == 0
    assert "classes:\n  - red\n  - blue\n  - green\n" in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.filterwarnings("ignore:.*test. skipped 2 objects")
def test_objects_of_other_classes_are_skipped(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"train: skipped 6 objects of other classes than 'red': 'blue'"):
        assert ohem("train", tmp_path / "run", *training(data), "--data.classes", "red").code == 0
    with pytest.warns(UserWarning, match=r"test: skipped 2 objects of other classes than 'red': 'blue'"):
        assert ohem("eval", tmp_path / "run").code == 0
    with pytest.warns(UserWarning, match="skipped"):
        text = sentence(ohem("train", tmp_path / "other", *training(data), "--data.classes", "rad"))
    assert "has no object of the classes 'rad': give some of 'blue', 'red' with --data.classes" in text
