"""Digests: which changes of weights and data they notice, and which they must not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ohem.data.loader import Examples
from ohem.inputs.datasets import open_data
from ohem.training import fingerprints
from ohem.training.fingerprints import digest_of_examples, digest_of_weights
from tests.helpers.toy_data import make_toy


def examples(folder: Path, *, split: str = "test", short: int = 64, top: int = 9, box: float = 8.0) -> Examples:
    data = open_data([f"{folder}:{split}"], (), "--data")
    proposals = {name: [[box, 2, 30, 40], [1, 2, 3, 4]] for name in data.ids}
    return Examples(data, proposals, short=short, long=80, top=top)


def test_another_place_and_name_are_the_same_data(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    before = digest_of_examples(examples(folder))
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    (moved / "ImageSets" / "Main" / "other.txt").write_text("g\nh\n")
    assert digest_of_examples(examples(moved, split="other")) == before


def paint(folder: Path) -> None:
    path = folder / "JPEGImages" / "h.png"
    image = Image.open(path).convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(path)


def rename(folder: Path) -> None:
    path = folder / "Annotations" / "h.xml"
    path.write_text(path.read_text().replace("red", "blue"))


def difficult(folder: Path) -> None:
    path = folder / "Annotations" / "h.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))


def shorten(folder: Path) -> None:
    (folder / "ImageSets" / "Main" / "test.txt").write_text("g\n")


@pytest.mark.parametrize("whole", [0, 9], ids=["ends", "whole"])
@pytest.mark.parametrize("change", [paint, difficult, shorten, rename])
def test_a_change_of_the_data_shows(
    tmp_path: Path, change: Callable[[Path], None], whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "WHOLE_FILES", whole)
    folder = make_toy(tmp_path / "toy")
    before = digest_of_examples(examples(folder))
    change(folder)
    assert digest_of_examples(examples(folder)) != before


def test_only_the_ends_of_the_images_of_large_sets_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "WHOLE_FILES", 0)
    folder = make_toy(tmp_path / "toy")
    path = folder / "JPEGImages" / "h.png"
    content = path.read_bytes()
    path.write_bytes(content + bytes(9000) + b"end")
    before = digest_of_examples(examples(folder))
    path.write_bytes(content + bytes(4500) + b"1" + bytes(4499) + b"end")
    assert digest_of_examples(examples(folder)) == before
    path.write_bytes(content + bytes(8999) + b"1end")
    assert digest_of_examples(examples(folder)) != before


def test_proposals_and_size_show(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    actual = {
        digest_of_examples(examples(folder)),
        digest_of_examples(examples(folder, short=48)),
        digest_of_examples(examples(folder, box=9.0)),
        digest_of_examples(examples(folder, top=1)),
    }
    assert len(actual) == 4
    assert digest_of_examples(examples(folder, top=2)) in actual  # there are two proposals


def test_weights() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    before = digest_of_weights(weights)
    assert len(before) == 16
    assert digest_of_weights(dict(reversed(weights.items()))) == before
    assert digest_of_weights({**weights, "a": weights["a"].t().contiguous().t()}) == before
    moved = weights["a"].clone()
    moved[1, 2] = torch.nextafter(moved[1, 2], torch.tensor(0.0))
    for other in (moved, weights["a"].reshape(3, 2), weights["a"].double()):
        assert digest_of_weights({**weights, "a": other}) != before
    assert digest_of_weights({"a": weights["a"], "c": weights["b"]}) != before
