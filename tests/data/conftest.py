"""A small data set in VOC layout, and changes of its annotations."""

from pathlib import Path

import pytest

from ohem.data.voc import VOCDetection
from ohem.errors import InputError
from tests.helpers.datasets import make_voc

CAT = ("cat", 3, 5, 10, 20, 0)
DOG = ("dog", 1, 1, 40, 30, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes two images of 40 x 30 pixels: `a` with a cat and a difficult dog, `b` without objects."""
    images = {"a": (30, 40, [CAT, DOG]), "b": (30, 40, [])}
    return make_voc(tmp_path / "VOC", images, {"train": ["a", "b"], "test": ["a"]})


def edit(folder: Path, old: str, new: str) -> None:
    """Replaces text, which must be present, in the annotation of `a`."""
    path = folder / "Annotations" / "a.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refused(source: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        VOCDetection(source if isinstance(source, str) else f"{source}:test")
    assert "\n" not in str(error.value)
