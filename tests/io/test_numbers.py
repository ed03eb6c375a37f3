"""Numbers as text."""

import pytest

from ohem.io.numbers import format_number


@pytest.mark.parametrize(
    ("value", "text", "signed"),
    [(1.25, "1.2", "+1.2"), (-1.26, "-1.3", "-1.3"), (0.0, "0.0", "0.0"), (-0.04, "0.0", "0.0"), (0.04, "0.0", "0.0")],
)
def test_zero_has_no_sign(value: float, text: str, signed: str) -> None:
    assert format_number(value) == text
    assert format_number(value, sign=True) == signed


def test_number_of_decimals() -> None:
    assert format_number(-0.4, 0) == "0"
    assert format_number(0.12345, 4) == "0.1235"
    assert format_number(-0.00001, 4) == "0.0000"
