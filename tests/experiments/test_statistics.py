"""Means, differences and intervals, counted by hand."""

import math

import pytest

from ohem.experiments.statistics import mean_of, paired, student


def test_mean_and_standard_error() -> None:
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert str(found) == "2.0 ± 0.6"


def test_one_value_has_no_error() -> None:
    assert math.isnan(mean_of([4.0]).error)
    assert str(mean_of([4.0])) == "4.0"


def test_differences_are_taken_seed_by_seed() -> None:
    """Arms that vary together: the differences 1, 2, 3 vary far less than the arms do."""
    found = paired([11.0, 52.0, 93.0], [10.0, 50.0, 90.0])
    assert found.mean == pytest.approx(2.0)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    reach = 4.302653 / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach), abs=1e-5)
    assert found.verdict() == "within noise"


@pytest.mark.parametrize(
    ("arm", "verdict"),
    [
        ([13.0, 13.1, 13.2], "better"),
        ([7.0, 7.1, 7.2], "worse"),
        ([9.0, 10.0, 11.5], "within noise"),
        ([10.0, 10.0, 10.0], "within noise"),
    ],
)
def test_verdicts(arm: list[float], verdict: str) -> None:
    assert paired(arm, [10.0, 10.0, 10.0]).verdict() == verdict


def test_one_seed_tells_no_noise() -> None:
    found = paired([12.0], [10.0])
    assert found.mean == 2.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.verdict().startswith("one seed")


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired([1.0], [1.0, 2.0])


def test_student_widens_with_confidence_and_narrows_with_seeds() -> None:
    assert student(0.95, 2) == pytest.approx(4.3027, abs=1e-4)
    assert student(0.99, 2) > student(0.95, 2) > student(0.95, 9) > 1.96
