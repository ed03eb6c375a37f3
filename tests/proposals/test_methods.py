"""Unions of the boxes of several methods."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ohem.proposals.methods import MethodUnion, union_of
from ohem.proposals.selective_search import SelectiveSearch
from tests.proposals.conftest import picture


def as_boxes(rows: list[list[float]]) -> NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_the_first_of_boxes_that_are_equal_in_whole_pixels_is_kept() -> None:
    one = as_boxes([[0, 0, 9, 9], [5, 5, 20.4, 20]])
    other = as_boxes([[5, 5, 20, 20], [1, 0, 9, 9], [0.3, 0, 9, 8.8]])
    assert union_of([one, other]).tolist() == as_boxes([*one.tolist(), [1, 0, 9, 9]]).tolist()
    assert union_of([other, one]).tolist() == as_boxes([*other.tolist()]).tolist()


def test_one_part_is_not_changed() -> None:
    boxes = as_boxes([[0, 0, 9, 9], [0.1, 0, 9, 9]])
    assert union_of([boxes]) is boxes


parts = st.lists(st.lists(st.tuples(*[st.integers(0, 3)] * 4).map(list), max_size=6), min_size=2, max_size=3)


@given(parts)
def test_a_union_has_every_box_once_in_order(rows: list[list[list[int]]]) -> None:
    expected = list(dict.fromkeys(tuple(row) for part in rows for row in part))
    assert [tuple(box) for box in union_of([as_boxes(part) for part in rows]).tolist()] == expected


def test_the_first_boxes_of_the_methods_are_used() -> None:
    image = picture(0)
    methods = [SelectiveSearch(seed=0), SelectiveSearch(seed=1)]
    boxes = MethodUnion(methods, top=3)(image)
    np.testing.assert_array_equal(boxes[:3], methods[0](image)[:3])
    assert {tuple(box) for box in boxes.tolist()} == {
        tuple(box) for method in methods for box in method(image)[:3].tolist()
    }
