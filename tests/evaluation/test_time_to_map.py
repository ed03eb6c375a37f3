"""Time to a given mAP: cases that can be counted by hand."""

import pytest

from ohem.evaluation.time_to_map import START, CurvePoint, first_reached, mean_curve, seconds_until, time_to_map

# Steps 1 to 10 take 2 s each, steps 11 to 20 take 1 s each, and the last 5 take 4 s each.
ROWS = [(10, 2.0), (20, 1.0), (25, 4.0)]


@pytest.mark.parametrize(
    ("step", "seconds"), [(0, 0), (1, 2), (10, 20), (13, 23), (20, 30), (24, 46), (25, 50), (99, 50)]
)
def test_seconds_are_those_of_the_steps_so_far(step: int, seconds: float) -> None:
    assert seconds_until(step, ROWS) == seconds


def test_no_rows_have_no_seconds() -> None:
    assert seconds_until(5, []) == 0


def curve(*points: tuple[float, float, float]) -> list[CurvePoint]:
    return [CurvePoint(*point) for point in points]


def test_mean_curve_has_the_steps_of_all_seeds() -> None:
    one, other = curve((5, 10, 20), (10, 18, 40), (12, 30, 41)), curve((4, 3, 1), (5, 20, 30), (10, 22, 60))
    assert mean_curve([one, other]) == curve((5, 15, 25), (10, 20, 50))
    assert mean_curve([one]) == one
    assert mean_curve([one, []]) == []
    assert mean_curve([]) == []


def test_crossing_is_on_the_straight_line_between_two_points() -> None:
    points = curve((10, 100, 20), (20, 180, 60), (30, 300, 50))
    assert first_reached(points, 30) == (12.5, 120, 30)
    assert first_reached(points, 20) == (10, 100, 20)
    assert first_reached(points, 60) == (20, 180, 60)
    assert first_reached(points, 10) == (5, 50, 10)  # from 0 mAP at step 0
    assert first_reached(points, 60.1) is None
    assert first_reached(points, 0) == START
    assert first_reached([], 1) is None


def test_the_first_of_several_crossings_counts() -> None:
    points = curve((10, 10, 40), (20, 20, 20), (30, 30, 40))
    assert first_reached(points, 30) == (7.5, 7.5, 30)


def test_time_is_that_of_the_mean_curve_and_a_share_of_all_seconds_of_the_base() -> None:
    base = [curve((10, 50, 20), (20, 100, 40)), curve((10, 150, 40), (20, 300, 60))]  # in the mean: 200 s, 50 mAP
    fast = [curve((10, 60, 60), (20, 120, 70)), curve((10, 100, 40), (20, 200, 50))]  # in the mean: 50 mAP after 80 s
    time = time_to_map(fast, base, target=50)
    assert time is not None
    assert (time.reached, time.share) == ((10, 80, 50), 0.4)
    assert time.of_seeds == [(pytest.approx(50 / 6), 50, 50), (20, 200, 50)]
    own = time_to_map(base, base, target=50)
    assert own is not None
    assert (own.reached, own.share, own.of_seeds) == ((20, 200, 50), 1, [None, (15, 225, 50)])


def test_method_that_stays_below_has_no_time() -> None:
    base, slow = [curve((10, 50, 20), (20, 100, 40))], [curve((10, 50, 20), (20, 100, 39))]
    time = time_to_map(slow, base, target=40)
    assert time is not None
    assert (time.reached, time.share, time.of_seeds) == (None, None, [None])


def test_method_with_one_point_has_no_curve() -> None:
    assert time_to_map([curve((20, 100, 60))], [curve((20, 100, 40))], target=40) is None
    assert time_to_map([[]], [[]], target=40) is None
    with_curve = time_to_map([curve((10, 50, 40), (20, 100, 60))], [curve((20, 200, 40))], target=40)
    assert with_curve is not None
    assert with_curve.share == 0.25
