"""The cache of proposals: what is written is read, and what does not fit is refused with the reason."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from ohem.errors import InputError
from ohem.proposals.store import Proposals

SETTINGS = {"method": "selective search", "mode": "fast", "seed": 0}
SIZES = {"b": 10, "a": 20, "ü/1": 30}


def boxes(n, start=0.0):
    return np.arange(start, start + 4 * n, dtype=np.float32).reshape(n, 4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cache.safetensors"
    Proposals.from_boxes({"b": boxes(2), "a": boxes(0), "ü/1": boxes(1, 50)}, SIZES, SETTINGS).save(path)
    return path


def test_what_is_saved_is_loaded(file):
    read = Proposals.load(file)
    assert len(read) == 3
    assert list(read) == list(read.ids) == ["b", "a", "ü/1"]
    assert read.metadata == SETTINGS
    assert read.fingerprint == SIZES
    np.testing.assert_array_equal(read["b"], boxes(2))
    np.testing.assert_array_equal(read["ü/1"], boxes(1, 50))
    assert read["a"].shape == (0, 4)
    assert read["a"].dtype == read["b"].dtype == np.float32
    assert "c" not in read
    with pytest.raises(KeyError):
        read["c"]


@given(st.lists(st.integers(0, 3), max_size=5), st.data())
def test_round_trip(tmp_path_factory, counts, data):
    given_boxes = {str(i): data.draw(arrays(np.float32, (n, 4), elements=st.floats(0, 999, width=32)))
                   for i, n in enumerate(counts)}  # fmt: skip
    path = tmp_path_factory.mktemp("cache") / "p.safetensors"
    Proposals.from_boxes(given_boxes, dict.fromkeys(given_boxes, 1), {}).save(path)
    read = Proposals.load(path)
    assert list(read) == list(given_boxes)
    for name, expected in given_boxes.items():
        np.testing.assert_array_equal(read[name], expected)


def test_boxes_are_a_copy(file):
    read = Proposals.load(file)
    read["b"][:] = -1
    np.testing.assert_array_equal(read["b"], boxes(2))
    assert read["b"].flags.writeable


def test_loader_workers_get_it_by_pickle(file):
    for proposals in (Proposals.load(file), Proposals.from_boxes({"b": boxes(2)}, SIZES, SETTINGS)):
        copy = pickle.loads(pickle.dumps(proposals))
        np.testing.assert_array_equal(copy["b"], boxes(2))
        assert copy.metadata == SETTINGS
    assert len(pickle.dumps(Proposals.load(file))) < 500


def test_equal_proposals_are_equal_files(file, tmp_path):
    Proposals.load(file).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_others_can_read_the_file(file):
    mask = os.umask(0)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_nothing_is_left_of_a_write_that_fails(file, tmp_path, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match=r"cannot be written .disk full.: make room"):
        Proposals.from_boxes({}, {}, {}).save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_refused(file):
    with pytest.raises(InputError, match="cannot be written"):
        Proposals.from_boxes({}, {}, {}).save(file / "under a file" / "p.safetensors")


def test_every_truncation_is_refused(file):
    whole = file.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cache\.safetensors: not a whole file.*delete the file"):
            Proposals.load(file)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file of proposals"):
        Proposals.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="not a whole file"):
        Proposals.load(tmp_path)


def test_weights_are_not_proposals(tmp_path):
    save_file({"conv1": np.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="not a whole file of proposals"):
        Proposals.load(tmp_path / "w.safetensors")


def test_offsets_that_do_not_fit_are_refused(file):
    for offsets in ([0, 2, 2, 4], [1, 2, 2, 3], [0, 3, 2, 3], [0, 3]):
        Proposals(boxes(3), np.array(offsets, np.int64), SIZES, SETTINGS).save(file)
        with pytest.raises(InputError, match="boxes and offsets disagree"):
            Proposals.load(file)


def test_another_format_is_refused(file, monkeypatch):
    monkeypatch.setattr("ohem.proposals.store.FORMAT", 2)
    with pytest.raises(InputError, match="format 1, want 2"):
        Proposals.load(file)


def test_check_accepts_its_own_and_fewer_images(file):
    read = Proposals.load(file)
    read.check(SETTINGS, SIZES)
    read.check({"mode": "fast"}, {"a": 20})


@pytest.mark.parametrize(
    ("settings", "sizes", "reason"),
    [
        ({"mode": "quality"}, {}, "made with mode fast, want quality"),
        ({"seed": 1}, {}, "made with seed 0, want 1"),
        ({"method": "edge boxes"}, {}, "made with method selective search, want edge boxes"),
        ({}, {**SIZES, "x": 1, "y": 1}, "x is not among its 3 ids, nor are 1 more of the 5 wanted"),
        ({}, {**SIZES, "a": 21}, "a was a file of 20 bytes and has 21 now, and 0 more have changed"),
    ],
)
def test_check_says_why(file, settings, sizes, reason):
    with pytest.raises(InputError, match=reason) as caught:
        Proposals.load(file).check(settings, sizes)
    assert str(file) in str(caught.value)
    assert "delete the file" in str(caught.value)
