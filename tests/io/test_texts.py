"""Texts in an array: they come back as they were."""

import pytest

from ohem.io.texts import Texts


def test_texts_take_their_bytes() -> None:
    texts = Texts.of(["", "äöü", "x"])
    assert list(texts) == ["", "äöü", "x"]
    assert len(texts.content) == 7
    assert (list(texts[::2]), texts[-1], list(Texts.of([]))) == (["", "x"], "x", [])
    with pytest.raises(IndexError):
        texts[3]


def test_half_characters_are_kept() -> None:
    """Names of files that are not UTF-8 have some, and JSON may."""
    given = ["a\udcff", "\ud800", "b"]
    assert list(Texts.of(given).joined(Texts.of(["c"]))) == [*given, "c"]
