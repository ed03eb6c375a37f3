"""Sliding windows: counted by hand on small images, and properties for all sizes."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ohem.config.schema import ProposalConfig
from ohem.errors import InputError
from ohem.inputs.propose import make_proposals
from ohem.proposals.windows import SlidingWindows, sliding_windows
from ohem.training.fingerprints import digest_of_proposals

sides = st.integers(1, 3000)


def test_the_largest_windows_by_hand() -> None:
    """Has 8 x 8, 6 x 8 and 8 x 6; with the next scale there would be 10 windows, one more than allowed."""
    third = [0, 2 / 3, 4 / 3, 2]
    expected = [[0, 0, 8, 8], *([x, 0, x + 6, 8] for x in third), *([0, y, 8, y + 6] for y in third)]
    np.testing.assert_array_equal(sliding_windows((8, 8), 9), np.array(expected, np.float32))


def test_two_scales_by_hand() -> None:
    """Has three places for windows of half the length; a window without a second place is in the middle."""
    assert sliding_windows((8, 8), 10).tolist() == [
        [0, 0, 8, 8],
        [1, 0, 7, 8],
        [0, 1, 8, 7],
        [1, 1, 7, 7],
        *([x, 0, x + 4, 8] for x in (0, 2, 4)),
        *([0, y, 8, y + 4] for y in (0, 2, 4)),
    ]


def test_rows_of_windows_go_from_top_to_bottom() -> None:
    of_one_shape = [box for box in sliding_windows((30, 40), 200).tolist() if box[2] - box[0] == box[3] - box[1] == 17]
    assert of_one_shape == sorted(of_one_shape, key=lambda box: (box[1], box[0]))
    assert of_one_shape[0] == [0, 0, 17, 17]
    assert of_one_shape[-1] == [23, 13, 40, 30]


@pytest.mark.parametrize(("size", "whole"), [((1, 1), [0, 0, 1, 1]), ((3, 2), [0, 0, 2, 3])])
def test_a_tiny_image_is_one_window(size: tuple[int, int], whole: list[float]) -> None:
    assert sliding_windows(size, 100).tolist() == [whole]


@given(sides, sides, st.integers(1, 3000))
@example(16, 2995, 500)
def test_windows_are_distinct_and_inside(height: int, width: int, count: int) -> None:
    windows = sliding_windows((height, width), count)
    assert windows.dtype == np.float32
    assert 1 <= len(windows) <= count
    assert len(np.unique(windows, axis=0)) == len(windows)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [width, height]).all()
    assert (windows[:, 2:] - windows[:, :2] > 0.999 * min(3, height, width)).all()


@given(st.integers(16, 3000), st.integers(16, 3000), st.sampled_from([1000, 2000, 5000, 20_000]))
def test_nearly_as_many_as_wanted(height: int, width: int, count: int) -> None:
    assert 0.75 * count <= len(sliding_windows((height, width), count)) <= count


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (480, 640), (1080, 1920)])
@pytest.mark.parametrize("count", [2000, 20_000, 100_000])
def test_photographs_have_98_percent_of_the_wanted_number(size: tuple[int, int], count: int) -> None:
    assert 0.98 * count <= len(sliding_windows(size, count)) <= count


def test_more_windows_are_smaller() -> None:
    least = [
        min((windows[:, 2:] - windows[:, :2]).prod(axis=1))
        for windows in (sliding_windows((375, 500), count) for count in (10, 100, 1000, 10_000))
    ]
    assert least == sorted(set(least), reverse=True)


def test_windows_are_made_anew_and_cannot_be_written() -> None:
    first = sliding_windows((20, 30), 50).copy()
    sliding_windows.cache_clear()
    again = sliding_windows((20, 30), 50)
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0


def test_windows_of_images_by_name() -> None:
    windows = SlidingWindows({"a": (20, 30), "b": (40, 30)}, 50)
    assert list(windows) == ["a", "b"]
    assert len(windows) == 2
    np.testing.assert_array_equal(windows["b"], sliding_windows((40, 30), 50))
    with pytest.raises(KeyError):
        windows["c"]


def test_the_digest_is_of_the_first_image() -> None:
    """Checks that 100 000 windows of each image are not hashed: the sizes of the others are part of the images."""
    digest, longer, fewer = (
        digest_of_proposals(list(windows), windows, windows.count)
        for windows in (
            SlidingWindows({"a": (20, 30)}, 50),
            SlidingWindows({"a": (20, 30), "b": (4000, 6000)}, 50),
            SlidingWindows({"a": (20, 30)}, 40),
        )
    )
    assert digest == longer
    assert digest != fewer


def test_there_is_nothing_to_propose() -> None:
    with pytest.raises(InputError, match="--mode sliding has nothing to make in advance"):
        make_proposals(["x:train"], (), ProposalConfig(mode=("sliding",)))
