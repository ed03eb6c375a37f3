"""Checks of values that other modules share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.checks import is_finite

NUMBERS = st.floats(width=32) | st.sampled_from([float("inf"), -float("inf"), float("nan"), 3e38, -3e38])


@given(st.lists(NUMBERS, max_size=6))
def test_finite_is_what_every_number_is(numbers: list[float]) -> None:
    value = torch.tensor(numbers)
    assert is_finite(value) == bool(value.isfinite().all())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([float("inf"), -float("inf")]), False),
        (torch.full((2, 2), 3e38), True),  # whose sum is not
        (torch.full((9,), 6e4, dtype=torch.float16), True),
        (torch.full((9,), 2**62), True),
        (torch.tensor(float("nan")), False),
        (torch.empty(0, 4), True),
        (torch.tensor([True, False]), True),
    ],
)
def test_finite_of_any_shape_and_type(value: Tensor, expected: bool) -> None:
    assert is_finite(value) is expected
