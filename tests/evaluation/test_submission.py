"""The result files of the VOC server: 1-based, inclusive ends, one file for each class, complete or absent."""

from pathlib import Path

import pytest
import torch

from ohem.errors import InputError
from ohem.evaluation.submission import write_submission

CLASSES = ("cat", "dog", "emu")
DETECTIONS = [
    {
        "boxes": torch.tensor([[0.0, 0.0, 500.0, 375.0], [10.25, 20.5, 30.0, 40.75], [1.0, 2.0, 3.0, 4.0]]),
        "labels": torch.tensor([2, 1, 2]),
        "scores": torch.tensor([0.9, 0.5, 0.001]),
    },
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)},
    {"boxes": torch.tensor([[4.0, 3.0, 9.0, 8.0]]), "labels": torch.tensor([1]), "scores": torch.tensor([1.0])},
]
IDS = ["000001", "000002", "2008_000003"]


def test_lines_by_hand(tmp_path: Path) -> None:
    write_submission(tmp_path / "new" / "folder", IDS, DETECTIONS, CLASSES)
    texts = {path.name: path.read_text() for path in (tmp_path / "new" / "folder").iterdir()}
    assert texts == {
        "comp4_det_test_cat.txt": "000001 0.500000 11.25 21.50 30.00 40.75\n2008_000003 1.000000 5.00 4.00 9.00 8.00\n",
        "comp4_det_test_dog.txt": "000001 0.900000 1.00 1.00 500.00 375.00\n000001 0.001000 2.00 3.00 3.00 4.00\n",
        "comp4_det_test_emu.txt": "",
    }


def test_files_of_before_are_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        write_submission(tmp_path, IDS, DETECTIONS, CLASSES)
    write_submission(tmp_path, IDS[1:2], DETECTIONS[1:2], CLASSES)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["", "", ""]


def test_a_class_that_is_a_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\.\./dog'.*rename"):
        write_submission(tmp_path / "out", IDS, DETECTIONS, ("cat", "../dog", "emu"))
    assert not (tmp_path / "out").exists()


def test_as_many_images_as_ids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_submission(tmp_path / "out", IDS[:2], DETECTIONS, CLASSES)
    assert not (tmp_path / "out").exists()
