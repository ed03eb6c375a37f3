"""The file that keeps proposals: writing, reading, and refusals with their reason."""

import json
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ohem.errors import InputError
from ohem.proposals.store import Proposals

SETTINGS = {"method": "selective search", "mode": "fast", "seed": 0}
DIGESTS = {"b": "00000000000000b1", "a": "00000000000000a2", "ü/1": "ffffffffffffff03"}


def boxes(n, start=0.0):
    return np.arange(start, start + 4 * n, dtype=np.float32).reshape(n, 4)


def digests_for(names):
    return {name: f"{number:016x}" for number, name in enumerate(names)}


def reseal(file, change):
    """Applies `change` to boxes, offsets, digests and CRCs, and computes the CRC of the index again."""
    with safe_open(file, framework="numpy") as opened:
        text = opened.metadata()["ohem.proposals"]
        tensors = {name: opened.get_tensor(name).copy() for name in ("boxes", "offsets", "digests", "crcs")}
    change(tensors)
    write_resealed(file, text, tensors)


def write_resealed(file, text, tensors):
    crc = zlib.crc32(text.encode() + b"".join(tensors[name].tobytes() for name in ("offsets", "digests", "crcs")))
    header, end = {"__metadata__": {"ohem.proposals": text}}, 0
    tensors = {**tensors, "index_crc": np.array([crc], np.uint32)}
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "int64": "I64", "uint8": "U8", "uint32": "U32"}[str(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    content = json.dumps(header).encode()
    file.write_bytes(len(content).to_bytes(8, "little") + content + b"".join(t.tobytes() for t in tensors.values()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cache.safetensors"
    Proposals.from_boxes({"b": boxes(2), "a": boxes(0), "ü/1": boxes(1, 50)}, DIGESTS, SETTINGS).save(path)
    return path


def test_what_is_saved_is_loaded(file):
    read = Proposals.load(file)
    assert len(read) == 3
    assert list(read) == list(read.ids) == ["b", "a", "ü/1"]
    assert read.metadata == SETTINGS
    assert read.digests == DIGESTS
    np.testing.assert_array_equal(read["b"], boxes(2))
    np.testing.assert_array_equal(read["ü/1"], boxes(1, 50))
    assert read["a"].shape == (0, 4)
    assert read["a"].dtype == read["b"].dtype == np.float32
    assert "c" not in read
    with pytest.raises(KeyError):
        read["c"]


@given(st.lists(st.integers(0, 3), max_size=5), st.data())
def test_round_trip(tmp_path_factory, counts, data):
    given_boxes = {}
    for i, n in enumerate(counts):
        low, side = (data.draw(arrays(np.float32, (n, 2), elements=st.floats(s, 999, width=32))) for s in (0, 1))
        given_boxes[str(i)] = np.concatenate([low, low + side], axis=1)
    path = tmp_path_factory.mktemp("cache") / "p.safetensors"
    Proposals.from_boxes(given_boxes, digests_for(given_boxes), {}).save(path)
    read = Proposals.load(path)
    assert list(read) == list(given_boxes)
    for name, expected in given_boxes.items():
        np.testing.assert_array_equal(read[name], expected)


def test_it_is_a_file_of_safetensors(file):
    tensors = load_file(file)
    assert sorted(tensors) == sorted(["boxes", "offsets", "digests", "crcs", "index_crc"])
    np.testing.assert_array_equal(tensors["boxes"], np.concatenate([boxes(2), boxes(1, 50)]))
    assert tensors["offsets"].tolist() == [0, 2, 2, 3]
    assert tensors["digests"].tobytes().hex() == "".join(DIGESTS.values())


def test_boxes_are_a_copy(file):
    read = Proposals.load(file)
    read["b"][:] = -1
    np.testing.assert_array_equal(read["b"], boxes(2))
    assert read["b"].flags.writeable


def test_loader_workers_get_it_by_pickle(file):
    for proposals in (Proposals.load(file), Proposals.from_boxes({"b": boxes(2)}, DIGESTS, SETTINGS)):
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
    with pytest.raises(InputError, match=r"cannot be written .disk full.: name another"):
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
        with pytest.raises(InputError, match=r"cache\.safetensors: not a complete file.*delete the file"):
            Proposals.load(file)


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file of proposals"):
        Proposals.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="not a complete file"):
        Proposals.load(tmp_path)


def test_weights_are_not_proposals(tmp_path):
    save_file({"conv1": np.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="not a complete file of proposals"):
        Proposals.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("offsets", [[0, 2, 2, 4], [1, 2, 2, 3], [0, 3, 2, 3]])
def test_offsets_that_do_not_fit_are_refused(file, offsets):
    reseal(file, lambda tensors: tensors["offsets"].__setitem__(slice(None), offsets))
    with pytest.raises(InputError, match="boxes and offsets disagree"):
        Proposals.load(file)


def test_every_flipped_bit_is_noticed_at_load_or_at_the_boxes(file):
    whole = file.read_bytes()
    expected = {name: boxes.tolist() for name, boxes in Proposals.load(file).items()}
    damaged = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            read = Proposals.load(file)
            assert {name: boxes.tolist() for name, boxes in read.items()} == expected
            assert (dict(read.digests), read.metadata) == (DIGESTS, SETTINGS)
        except InputError as error:
            assert str(file) in str(error)  # noqa: PT017
            assert "delete the file, and it is made again" in str(error)  # noqa: PT017
            damaged += 1
    assert damaged > len(whole) - 8  # all but the padding of the header


IMPOSSIBLE = [
    ([np.nan, 0, 5, 5], "not finite"),
    ([0, 0, np.inf, 5], "not finite"),
    ([-np.inf, 0, 5, 5], "not finite"),
    ([0, 0, 5, 1e30], "outside the image"),
    ([5, 0, 5, 9], "is inverted or has no area"),
    ([0, 9, 5, 3], "is inverted or has no area"),
    ([-3, 0, 5, 5], "outside the image"),
    ([0, -1, 5, 5], "outside the image"),
]


@pytest.mark.parametrize(("box", "fault"), IMPOSSIBLE)
def test_impossible_boxes_are_refused_from_memory_and_from_a_file(file, box, fault):
    given_boxes = np.array([[0, 0, 9, 9], box, [1, 1, 2, 2]], np.float32)
    with pytest.raises(ValueError, match=rf"boxes\['a'\]: 1 of 3 are impossible, first number 1, .*{fault}"):
        Proposals.from_boxes({"a": given_boxes}, DIGESTS, SETTINGS)

    def put(tensors):
        tensors["boxes"][1] = box
        tensors["crcs"][0] = zlib.crc32(tensors["boxes"][:2].tobytes())

    reseal(file, put)
    read = Proposals.load(file)
    with pytest.raises(InputError, match=f"the boxes of b cannot be used .*{fault}.*delete the file"):
        read["b"]
    np.testing.assert_array_equal(read["ü/1"], boxes(1, 50))


@pytest.mark.parametrize("value", [np.zeros((2, 5), np.float32), np.zeros(4), np.array([["a"] * 4]), [[0j] * 4]])
def test_what_are_no_boxes_is_refused(value):
    with pytest.raises(ValueError, match=r"boxes\['a'\]: .*want numbers \[P, 4\]"):
        Proposals.from_boxes({"a": value}, DIGESTS, SETTINGS)


@pytest.mark.parametrize("digests", [{}, {"b": 10}, {"b": "0b1"}])
def test_digests_are_checked(digests):
    with pytest.raises(ValueError, match=r"digests\['b'\] is .*give the digest_of_file"):
        Proposals.from_boxes({"b": boxes(2)}, digests, SETTINGS)


def test_a_file_cut_short_or_removed_while_it_is_in_use(file):
    read = Proposals.load(file)
    file.unlink()
    np.testing.assert_array_equal(read["b"], boxes(2))  # the open file keeps its content

    Proposals.from_boxes({"b": boxes(2), "a": boxes(0), "ü/1": boxes(1, 50)}, DIGESTS, SETTINGS).save(file)
    read = Proposals.load(file)
    os.truncate(file, read.path.stat().st_size // 2)
    for name in ("b", "ü/1"):
        with pytest.raises(InputError, match=f"the boxes of {name} cannot be read .*it ends at byte"):
            read[name]
    assert read["a"].shape == (0, 4)


def test_another_format_is_refused(file, monkeypatch):
    monkeypatch.setattr("ohem.proposals.store.FORMAT", 3)
    with pytest.raises(InputError, match="format 2, want 3"):
        Proposals.load(file)


def test_current_are_those_of_the_same_images(file):
    read = Proposals.load(file)
    assert read.current(DIGESTS) == ["b", "a", "ü/1"]
    assert read.current({"a": DIGESTS["a"], "x": DIGESTS["b"], "b": DIGESTS["a"]}) == ["a"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mode": "quality"}, "made with mode fast, want quality"),
        ({"seed": 1}, "made with seed 0, want 1"),
        ({"method": "edge boxes"}, "made with method selective search, want edge boxes"),
    ],
)
def test_check_says_why(file, settings, reason):
    Proposals.load(file).check(SETTINGS)
    Proposals.load(file).check({"mode": "fast"})
    with pytest.raises(InputError, match=reason) as caught:
        Proposals.load(file).check(settings)
    assert str(file) in str(caught.value)
    assert "delete the file" in str(caught.value)
