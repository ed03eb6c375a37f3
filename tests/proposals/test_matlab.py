"""The original release's .mat files: columns, convention and filter, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io.matlab
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat, savemat
from scipy.io.matlab import matfile_version

from ohem.errors import InputError
from ohem.proposals.matfile import read_variables
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
    with pytest.raises(InputError, match=r"none\.mat: no such file"):
        read_mat(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_text("no matrix in here" * 20)
    with pytest.raises(InputError, match=r"text\.mat: not a complete \.mat file"):
        read_mat(tmp_path / "text.mat")
    whole = write(tmp_path / "p.mat", [np.ones((9, 4))] * 3, ["a", "b", "c"]).read_bytes()
    for length in range(0, len(whole), 11):
        (tmp_path / "p.mat").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"p\.mat"):
            read_mat(tmp_path / "p.mat")


def same(ours, theirs):
    """Returns whether two values are equal; None stands for types that SciPy reads and this reader does not."""
    if ours is None:
        return not isinstance(theirs, np.ndarray) or theirs.dtype.kind not in "OUiuf"
    if ours.dtype == object:
        return ours.shape == theirs.shape and all(map(same, ours.ravel(), theirs.ravel()))
    return ours.shape == theirs.shape and ours.tolist() == theirs.tolist()


HDF = 2
"""Version of the files that SciPy does not read, those of MATLAB 7.3."""
OF_MATLAB = sorted(Path(scipy.io.matlab.__file__).parent.glob("tests/data/test*_[567]*.mat"))


@pytest.mark.skipif(not OF_MATLAB, reason="this SciPy comes without its tests")
@pytest.mark.filterwarnings("ignore")  # SciPy raises these for files that it cannot read
def test_files_of_matlab_are_read_as_scipy_reads_them():
    compared = 0
    for path in OF_MATLAB:
        if matfile_version(path)[0] == HDF:
            continue
        names = [name for name in loadmat(path) if not name.startswith("__")]
        variables = read_variables(path.read_bytes(), names)
        theirs = loadmat(path)
        for name in names:
            assert same(variables.get(name), theirs[name]), f"{path}: {name}: {variables.get(name)!r} {theirs[name]!r}"
            compared += variables.get(name) is not None
    assert compared > 20


@given(st.data(), st.booleans(), st.booleans())
def test_files_are_read_as_scipy_reads_them(tmp_path_factory, data, compressed, column):
    kind = data.draw(st.sampled_from(["f8", "f4", "u1", "u2", "i4", "i8"]))
    names = data.draw(st.lists(st.text("ab01_é ", min_size=1, max_size=6).filter(str.strip), max_size=4))
    boxes = [np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 127)] * 4), max_size=3)), kind) for _ in names]
    shape = (-1, 1) if column else (1, -1)
    written = {"boxes": cells(boxes).reshape(shape), "images": cells(names).reshape(shape), "other": {"x": [1, 2]}}
    path = tmp_path_factory.mktemp("mat") / "p.mat"
    savemat(path, written, do_compression=compressed)
    expected = loadmat(path)
    variables = read_variables(path.read_bytes(), ("boxes", "images"))
    assert list(variables) == ["boxes", "images"]
    for name, value in variables.items():
        assert value.shape == expected[name].shape
        for ours, theirs in zip(value.ravel(), expected[name].ravel(), strict=True):
            assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([1, 1, np.nan, 9], "not finite"),
        ([1, 1, 9, np.inf], "not finite"),
        ([1, 1, 1e30, 9], "outside the image"),
        ([9, 1, 4, 9], "is inverted"),
        ([0, 1, 9, 9], "outside the image"),  # counted from 0
        ([-4, 1, 9, 9], "outside the image"),
    ],
)
def test_impossible_boxes_are_refused(tmp_path, box, fault):
    path = write(tmp_path / "p.mat", [[[1, 1, 9.0, 9]], [[1, 1, 9.0, 9], box]], ["a", "b"])
    with pytest.raises(InputError, match=rf"p\.mat: boxes of b: 1 of 2 are impossible, first number 1, .*{fault}"):
        read_mat(path)


def test_an_id_with_two_sets_of_boxes_is_refused(tmp_path):
    one, other = [[1, 1, 9, 9]], [[1, 1, 8, 8]]
    with pytest.raises(InputError, match=r"p\.mat: two sets of boxes of a"):
        read_mat(write(tmp_path / "p.mat", [one, one, other], ["a", "b", "a"]))
    assert list(read_mat(write(tmp_path / "same.mat", [one, one], ["a", "a"]))) == ["a"]


@pytest.mark.parametrize("name", ["boxes", "images"])
def test_what_is_no_cell_array_is_refused(tmp_path, name):
    content = {"boxes": cells([np.ones((1, 4))]), "images": cells(["a"])}
    savemat(tmp_path / "p.mat", {**content, name: np.ones((3, 4))})
    with pytest.raises(InputError, match=rf"p\.mat: {name}: not a cell array"):
        read_mat(tmp_path / "p.mat")
    savemat(tmp_path / "p.mat", {**content, name: {"field": 3}})
    with pytest.raises(InputError, match=rf"p\.mat: {name}"):
        read_mat(tmp_path / "p.mat")


def test_ids_that_are_no_text_are_refused(tmp_path):
    for image in (5.0, "", ["a", "bc"]):
        with pytest.raises(InputError, match=r"p\.mat: cell 2 of images: not the id of an image"):
            read_mat(write(tmp_path / "p.mat", [np.ones((1, 4)) * 3] * 2, ["a", image]))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_refused_or_read(tmp_path, compressed):
    """Checks that every flipped bit of compressed data is noticed; without compression a number has no checksum."""
    rng = np.random.default_rng(0)
    low = rng.integers(1, 50, (3, 20, 2))
    boxes = list(np.concatenate([low, low + rng.integers(5, 50, (3, 20, 2))], axis=2).astype(float))
    filled = cells(boxes)
    path = tmp_path / "p.mat"
    savemat(path, {"boxes": filled, "images": cells(["a", "b", "c"])}, do_compression=compressed)
    whole, expected = path.read_bytes(), {name: boxes.tolist() for name, boxes in read_mat(path).items()}
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        place = int(rng.integers(len(content)))
        match rng.integers(4):
            case 0:
                content[place] ^= 1 << int(rng.integers(8))
            case 1:
                del content[place:]
            case 2:
                content[place : place + 64] = bytes(len(content[place : place + 64]))
            case _:
                content[place : place + 16] = rng.bytes(len(content[place : place + 16]))
        path.write_bytes(content)
        try:
            read = {name: boxes.tolist() for name, boxes in read_mat(path).items()}
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
            continue
        if compressed:
            assert read == expected
    assert refused > 100
