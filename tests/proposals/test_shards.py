"""Proposals in several files: equal to those in one, and no complete file is written again."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohem.errors import InputError
from ohem.io.texts import Texts
from ohem.proposals import generate as module
from ohem.proposals import shards
from ohem.proposals.generate import generate, is_generated
from ohem.proposals.index import Digests, Rows, packed
from ohem.proposals.selective_search import SelectiveSearch
from ohem.proposals.shards import Shards, shard_files
from tests.proposals.conftest import picture
from tests.proposals.test_generate import calls  # noqa: F401  a fixture


@pytest.fixture(autouse=True)
def _two_images_a_file(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 2)


def make(images, path, **options):
    return generate(images, path, jobs=1, progress=False, **options)


def equal(one, other, names):
    assert set(one) == set(names)
    for name in names:
        np.testing.assert_array_equal(one[name], other[name])


def contents(path):
    return {file.name: file.read_bytes() for file in (path, *shard_files(path))}


def test_the_boxes_are_those_of_one_file(images, path, monkeypatch):
    made = make(images, path)
    assert [len(file) for file in made.files] == [2, 2, 2]
    assert list(made) == list(images)
    monkeypatch.setattr(shards, "SHARD", 9)
    whole = make(images, path.with_name("whole.safetensors"))
    assert len(whole.files) == 1
    equal(made, whole, images)
    equal(pickle.loads(pickle.dumps(made)), whole, images)


def test_equal_proposals_are_equal_bytes(images, path):
    make(images, path)
    generate(images, path.with_name("two.safetensors"), jobs=2, progress=False)
    one, two = contents(path), contents(path.with_name("two.safetensors"))
    assert list(one.values()) == list(two.values())


def test_an_added_image_costs_one_image(images, path, calls):  # noqa: F811
    few = {name: images[name] for name in "dafbe"}
    make(few, path)
    before = contents(path)
    del calls[:]
    made = make(images, path)
    after = contents(path)
    assert calls == ["c"]
    assert [name for name in after if after[name] != before.get(name)] == ["00002.safetensors"]
    assert len(after) == 3
    equal(made, make(images, path.with_name("straight.safetensors")), images)


def test_a_changed_image_is_in_the_last_file(images, path, calls):  # noqa: F811
    from PIL import Image

    make(images, path)
    before = contents(path)
    Image.fromarray(picture(77)).save(images["a"])
    del calls[:]
    assert not is_generated(images, path)
    with pytest.warns(UserWarning, match="1 image files have changed"):
        made = make(images, path)
    assert calls == ["a"]
    assert before.items() <= contents(path).items()
    assert (len(made), len(list(made)), len(made.files)) == (6, 6, 4)
    equal(made, make(images, path.with_name("straight.safetensors")), images)
    assert make(images, path).digests["a"] == made.digests["a"]
    assert calls[1:] == list(images)  # those of straight.safetensors alone


def test_a_killed_call_keeps_its_complete_files(images, path, monkeypatch, calls):  # noqa: F811
    real = module.write_next

    def fail(at, cached, *rest):
        if cached is not None and len(cached.files) == 2:
            raise KeyboardInterrupt
        return real(at, cached, *rest)

    monkeypatch.setattr(module, "write_next", fail)
    with pytest.raises(KeyboardInterrupt):
        make(images, path)
    monkeypatch.setattr(module, "write_next", real)
    assert len(contents(path)) == 2
    del calls[:]
    made = make(images, path)
    assert calls == []  # the boxes of the third file were in the parts
    equal(made, make(images, path.with_name("straight.safetensors")), images)
    assert not path.with_name(f"{path.name}.parts").exists()


def test_a_damaged_or_missing_file_is_made_again(images, path, calls):  # noqa: F811
    make(images, path)
    straight = make(images, path.with_name("straight.safetensors"))
    second = shard_files(path)[0]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"00001\.safetensors: .*delete the file"):
        make(images, path)
    for file in (second, path):
        file.unlink()
        del calls[:]
        equal(make(images, path), straight, images)
        assert len(calls) == 2


def test_other_settings_are_refused(images, path):
    make(images, path)
    for file in contents(path):
        place = next(one for one in (path, *shard_files(path)) if one.name == file)
        others = place.with_suffix(".others")
        place.rename(others)
        if place == path:
            with pytest.raises(InputError, match=r"00001\.safetensors: proposals made with mode fast, want quality"):
                make(images, path, method=SelectiveSearch("quality"))
        others.rename(place)
    with pytest.raises(InputError, match="made with mode fast, want quality"):
        make(images, path, method=SelectiveSearch("quality"))


def test_many_files(tmp_path):
    path = tmp_path / "many.safetensors"
    cached = None
    for number in range(30):
        names = [f"{number}-{k}" for k in range(2)]
        boxes = {name: np.array([[k, 2, 40, 50]], np.float32) for k, name in enumerate(names)}
        digests = dict.fromkeys(names, f"{number:016x}")
        cached = shards.write_next(path, cached, boxes, digests, digests, {"opencv": "4"})
    opened = Shards(path)
    assert [len(one.files) for one in (cached, opened)] == [30, 30]
    assert list(opened) == [f"{number}-{k}" for number in range(30) for k in range(2)]
    assert [opened[name][0, 0] for name in opened] == [0, 1] * 30
    assert opened.digests["17-1"] == f"{17:016x}"
    assert "30-0" not in opened
    with pytest.raises(KeyError):
        opened["30-0"]


def test_the_files_of_very_many_images_are_opened_for_every_read(images, path, monkeypatch):
    make(images, path)
    monkeypatch.setattr(shards, "OPEN", 2)
    opened = Shards(path)
    equal(opened, make(images, path), images)
    first = shard_files(path)[0]
    first.write_bytes(first.read_bytes())
    assert opened["d"].size
    with pytest.raises(InputError, match=r"00001\.safetensors: the boxes of .* written again since"):
        [opened[name] for name in images]


NAMES = st.lists(st.text(max_size=3), max_size=8)


@given(NAMES, NAMES)
def test_the_last_row_of_an_id_counts(ids, others):
    expected = {name: row for row, name in enumerate(ids)}
    for rows in (Rows(ids), pickle.loads(pickle.dumps(Rows(Texts.of(ids))))):
        assert {name: rows[name] for name in ids} == expected
        assert rows.find([*others, *ids]).tolist() == [expected.get(name, -1) for name in [*others, *ids]]
        assert list(rows) == ids


class Same(str):
    __slots__ = ()

    def __hash__(self):
        return 7


def test_ids_of_one_hash():
    ids = [Same(name) for name in "abcb"]
    rows = Rows(ids)
    assert [rows[name] for name in ids] == [0, 3, 2, 3]
    assert rows.find([*ids, Same("d")]).tolist() == [0, 3, 2, 3, -1]
    assert Same("d") not in rows


def test_other_digests():
    have, want = packed({"a": "00" * 8, "b": "ff" * 8}), packed({"b": "ff" * 8, "a": "0" * 15 + "1", "c": "00" * 8})
    assert want.others(have.rows, have.content).tolist() == [1, 2]
    assert dict(want.take(np.array([2, 0]))) == {"c": "00" * 8, "b": "ff" * 8}
    assert dict(want) == {"b": "ff" * 8, "a": "0" * 15 + "1", "c": "00" * 8}
    assert want.others(Rows([]), np.zeros((0, 8), np.uint8)).tolist() == [0, 1, 2]
    assert not len(Digests([], np.zeros((0, 8), np.uint8)).others(have.rows, have.content))


def test_an_image_takes_a_hundred_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 4096)
    path, count, cached = tmp_path / "many.safetensors", 2 * 4096, None
    for first in range(0, count, 4096):
        digests = {f"COCO_train2014_{number:07d}": f"{number:016x}" for number in range(first, first + 4096)}
        boxes = dict.fromkeys(digests, np.array([[1, 2, 40, 50]], np.float32))
        cached = shards.write_next(path, cached, boxes, digests, digests, {"opencv": "4"})
    tracemalloc.start()
    try:
        opened = Shards(path)
        assert "COCO_train2014_0000017" in opened
        assert tracemalloc.get_traced_memory()[0] < 70 * count
    finally:
        tracemalloc.stop()
