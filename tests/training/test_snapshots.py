"""Snapshots: writing and reading."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from ohem.errors import InputError
from ohem.training import snapshots

WEIGHTS = {
    "layer.weight": torch.arange(6.0).reshape(2, 3).t(),
    "scale": torch.tensor(2.0),
    "order": torch.tensor([2, 1]),
}


def test_round_trip(tmp_path: Path) -> None:
    assert snapshots.list_snapshots(tmp_path) == {}
    for step in (1200, 5, 12_345_678):
        snapshots.save_snapshot(tmp_path, step, WEIGHTS)
    loaded = snapshots.list_snapshots(tmp_path)
    assert list(loaded) == [5, 1200, 12_345_678]
    assert loaded[1200] == tmp_path / "snapshots" / "step-0001200.safetensors"
    read = snapshots.load(loaded[1200])
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(value, WEIGHTS[name]) and value.dtype == WEIGHTS[name].dtype for name, value in read.items())
    assert {path.name[0] for path in (tmp_path / "snapshots").iterdir()} == {"s"}  # no incomplete file is left


def test_equal_weights_are_equal_files_and_readable_by_others(tmp_path: Path) -> None:
    snapshots.save_snapshot(tmp_path, 1, WEIGHTS)
    snapshots.save_snapshot(tmp_path, 2, dict(reversed(WEIGHTS.items())))
    one, two = snapshots.list_snapshots(tmp_path).values()
    assert one.read_bytes() == two.read_bytes()
    temporary = tmp_path / "temporary"
    temporary.touch()
    assert one.stat().st_mode == temporary.stat().st_mode


def test_one_that_is_there_is_left(tmp_path: Path) -> None:
    snapshots.save_snapshot(tmp_path, 1, WEIGHTS)
    (path,) = snapshots.list_snapshots(tmp_path).values()
    before = path.read_bytes()
    snapshots.save_snapshot(tmp_path, 1, {"other": torch.zeros(1)})
    assert path.read_bytes() == before


def test_those_behind_a_step_are_removed_and_other_files_are_not(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        snapshots.save_snapshot(tmp_path, step, WEIGHTS)
    note = tmp_path / "snapshots" / "step-of-mine.txt"
    note.touch()
    snapshots.drop_after(tmp_path, 1)
    assert list(snapshots.list_snapshots(tmp_path)) == [1]
    assert note.exists()


def test_a_damaged_one(tmp_path: Path) -> None:
    snapshots.save_snapshot(tmp_path, 1, WEIGHTS)
    (path,) = snapshots.list_snapshots(tmp_path).values()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"step-0000001\.safetensors cannot be read"):
        snapshots.load(path)


def test_a_flipped_bit_and_weights_that_are_not_finite(tmp_path: Path) -> None:
    snapshots.save_snapshot(tmp_path, 1, WEIGHTS)
    snapshots.save_snapshot(tmp_path, 2, WEIGHTS | {"scale": torch.tensor(torch.nan)})
    flipped, infinite = snapshots.list_snapshots(tmp_path).values()
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    with pytest.raises(InputError, match=r"step-0000001\.safetensors cannot be read .*digest"):
        snapshots.load(flipped)
    with pytest.raises(InputError, match=r"step-0000002\.safetensors cannot be read \(scale is not finite"):
        snapshots.load(infinite)


def test_a_snapshot_of_an_older_version_has_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "step-0000001.safetensors"
    path.write_bytes(save({name: value.contiguous() for name, value in WEIGHTS.items()}))
    assert torch.equal(snapshots.load(path)["layer.weight"], WEIGHTS["layer.weight"])
