"""The original release's .mat files: columns, convention and filter, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from ohem.errors import InputError
from ohem.proposals.matlab import read_mat


def cells(items, column=False):
    array = np.empty((len(items), 1) if column else (1, len(items)), dtype=object)
    array.ravel()[:] = items
    return array


def write(path: Path, boxes, images, column=False) -> Path:
    filled = cells([None] * len(boxes))
    for i, box in enumerate(boxes):
        filled[0, i] = np.array(box)
    savemat(path, {"boxes": filled.T if column else filled, "images": cells(images, column)})
    return path


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.uint16])
def test_columns_and_convention(tmp_path, column, kind):
    # y1, x1, y2, x2 from 1, inclusive: a box of the first 5 columns and 4 rows, and one away from the corner
    boxes = [np.array([[1, 1, 4, 5], [11, 21, 30, 50]], kind), np.array([[2, 3, 9, 9]], kind)]
    read = read_mat(write(tmp_path / "p.mat", boxes, ["000005", "000007"], column))
    assert list(read) == ["000005", "000007"]
    assert read["000005"].tolist() == [[0, 0, 5, 4], [20, 10, 50, 30]]
    assert read["000007"].tolist() == [[2, 1, 9, 9]]
    assert read["000005"].dtype == np.float32


def test_repeated_and_small_boxes_are_dropped(tmp_path):
    boxes = [[[5, 5, 9, 9], [1, 1, 3, 3], [5, 5, 9, 9], [1, 1, 2, 9], [1, 1, 9, 2]]]
    assert read_mat(write(tmp_path / "p.mat", boxes, ["a"]))["a"].tolist() == [[4, 4, 9, 9], [0, 0, 3, 3]]


def test_an_image_without_boxes(tmp_path):
    read = read_mat(write(tmp_path / "p.mat", [np.empty((0, 0)), np.empty((0, 4))], ["a", "b"]))
    assert [boxes.shape for boxes in read.values()] == [(0, 4), (0, 4)]


def test_a_missing_variable_is_named(tmp_path):
    savemat(tmp_path / "p.mat", {"boxes": cells([np.ones((1, 4)), np.ones((1, 4))])})
    with pytest.raises(InputError, match=r"p\.mat: no variable images: "):
        read_mat(tmp_path / "p.mat")


def test_cells_that_do_not_pair_are_refused(tmp_path):
    path = write(tmp_path / "p.mat", [np.ones((1, 4)), np.ones((2, 4))], ["a"])
    with pytest.raises(InputError, match=r"p\.mat: 2 cells of boxes for 1 images"):
        read_mat(path)


@pytest.mark.parametrize("boxes", [np.ones((2, 5)), np.array(["text"])])
def test_boxes_of_another_shape_are_refused(tmp_path, boxes):
    with pytest.raises(InputError, match=r"p\.mat: boxes of a: .*, want numbers \[P, 4\]"):
        read_mat(write(tmp_path / "p.mat", [boxes, np.ones((2, 4))], ["a", "b"]))


def test_v73_says_how_to_convert(tmp_path):
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tmp_path / "p.mat").write_bytes(head + b"\x89HDF\r\n\x1a\n".ljust(512, b"\0"))
    with pytest.raises(InputError, match=r"^[^(]*p\.mat: a v7\.3 \(HDF5\) file: .*'-v7'"):
        read_mat(tmp_path / "p.mat")


def test_absent_text_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.mat: not a whole \.mat file"):
        read_mat(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_text("no matrix in here" * 20)
    with pytest.raises(InputError, match=r"text\.mat: not a whole \.mat file"):
        read_mat(tmp_path / "text.mat")
    whole = write(tmp_path / "p.mat", [np.ones((9, 4))] * 3, ["a", "b", "c"]).read_bytes()
    for length in range(0, len(whole), 11):
        (tmp_path / "p.mat").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"p\.mat"):
            read_mat(tmp_path / "p.mat")


def test_no_scipy_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match=r"ohem\[proposals\]"):
        read_mat(tmp_path / "p.mat")
