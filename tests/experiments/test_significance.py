"""Means, differences and intervals, calculated by hand."""

import math

import pytest

from ohem.experiments.significance import mean_of, paired, rank_correlation, student


def test_mean_and_standard_error() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert (mean.mean, mean.n) == (2.0, 3)
    assert mean.error == pytest.approx(1 / math.sqrt(3))
    assert str(mean) == "2.0 ± 0.6"


def test_one_value_has_no_error() -> None:
    assert math.isnan(mean_of([4.0]).error)
    assert str(mean_of([4.0])) == "4.0"


def test_differences_are_taken_seed_by_seed() -> None:
    """The values of both methods vary together: the differences 1, 2, 3 vary far less."""
    difference = paired([11.0, 52.0, 93.0], [10.0, 50.0, 90.0])
    assert difference.mean == pytest.approx(2.0)
    assert difference.error == pytest.approx(1 / math.sqrt(3))
    half = 4.302653 / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (difference.low, difference.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert difference.verdict() == "within noise"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([13.0, 13.1, 13.2], "better"),
        ([7.0, 7.1, 7.2], "worse"),
        ([9.0, 10.0, 11.5], "within noise"),
        ([10.0, 10.0, 10.0], "within noise"),
    ],
)
def test_verdicts(values: list[float], verdict: str) -> None:
    assert paired(values, [10.0, 10.0, 10.0]).verdict() == verdict


def test_one_seed_gives_no_interval() -> None:
    difference = paired([12.0], [10.0])
    assert difference.mean == 2.0
    assert math.isnan(difference.low)
    assert math.isnan(difference.high)
    assert difference.verdict().startswith("one seed")


def test_unequal_numbers_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired([1.0], [1.0, 2.0])


def test_student_widens_with_confidence_and_narrows_with_seeds() -> None:
    assert student(0.95, 2) == pytest.approx(4.3027, abs=1e-4)
    assert student(0.99, 2) > student(0.95, 2) > student(0.95, 9) > 1.96


def test_rank_correlation_by_hand() -> None:
    """Of the 24 orders of four values, two have a correlation of 1 or -1."""
    rising = rank_correlation([1, 2, 3, 40], [0.1, 0.2, 7, 8])
    assert rising is not None
    assert (rising.rho, rising.n) == (pytest.approx(1), 4)
    assert rising.p == pytest.approx(2 / 24, abs=0.01)
    falling = rank_correlation([1, 2, 3, 40], [8, 7, 0.2, 0.1])
    assert falling is not None
    assert falling.rho == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 1 - 6 * 0.5 / 60, corrected for the tie.
    tied = rank_correlation([5, 6, 6, 7], [1, 2, 3, 4])
    assert tied is not None
    assert tied.rho == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_rank_correlation_of_too_little_is_unknown() -> None:
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
    with pytest.raises(ValueError, match="pairs"):
        rank_correlation([1, 2, 3, 4], [1, 2, 3])
