"""What a page shows."""

from ohem.experiments.page import POINTS, smoothed


def test_few_points_are_shown_as_they_are() -> None:
    curve = [(10 * i, float(i)) for i in range(POINTS)]
    assert smoothed(curve) == curve
    assert smoothed([]) == []


def test_many_points_are_averaged_in_order() -> None:
    curve = [(i, float(i % 2)) for i in range(2 * POINTS)]
    assert smoothed(curve) == [(2 * i + 0.5, 0.5) for i in range(POINTS)]
