"""RoIPool without gradient: bit for bit the values of torchvision's. Rings: windows with a hole of zeros."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_pool

from ohem.kernels.roi_pool import AT_ONCE, ring_max_pool, roi_max_pool, roi_max_pools


def _windows(rois: int, count: int, height: int, width: int, rng: torch.Generator, outside: int = 0) -> Tensor:
    """Draws whole numbers, up to `outside` cells outside the map."""
    image = torch.randint(0, count, (rois, 1), generator=rng)
    corners = [
        torch.randint(-outside, side + outside, (rois, 2), generator=rng).sort(dim=1).values for side in (width, height)
    ]
    return torch.stack([image[:, 0], *(corner[:, i] for i in (0, 1) for corner in corners)], dim=1).float()


@given(
    st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 5), st.booleans()
)
def test_equals_torchvision_bit_for_bit(
    seed: int, height: int, width: int, size: int, outside: int, positive: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, height, width, generator=rng)
    features = features.relu() if positive else features
    windows = _windows(2 * AT_ONCE + 3, 2, height, width, rng, outside)
    assert torch.equal(roi_max_pool(features, windows, size), roi_pool(features, windows, (size, size)))


def test_rounding_of_every_length_is_torchvisions() -> None:
    """Compares the cells, which are computed in float32, of every window of a long map."""
    features = torch.randn(1, 2, 1, 130, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor([[0, x, 0, y, 0] for x in range(130) for y in range(x, 130)]).float()
    assert torch.equal(roi_max_pool(features, windows, 7), roi_pool(features, windows, (7, 7)))


def test_a_cell_is_the_maximum_of_its_rectangle() -> None:
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    windows = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0], [0.0, 1.0, 2.0, 1.0, 2.0]])
    assert roi_max_pool(features, windows, 2).tolist() == [[[[5, 7], [13, 15]]], [[[9, 9], [9, 9]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_last_maps_and_types(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 9, 11, generator=rng, dtype=dtype).contiguous(memory_format=torch.channels_last)
    windows = _windows(20, 2, 9, 11, rng).to(dtype)
    pooled = roi_max_pool(features, windows, 3)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, roi_pool(features, windows, (3, 3)))


def test_no_roi() -> None:
    assert roi_max_pool(torch.zeros(1, 2, 3, 3), torch.zeros(0, 5), 7).shape == (0, 2, 7, 7)


@pytest.mark.parametrize("rois", [0, 1, 7, 20])
def test_in_chunks_it_is_the_same(rois: int) -> None:
    rng = torch.Generator().manual_seed(0)
    features, windows = torch.randn(2, 3, 9, 11, generator=rng), _windows(rois, 2, 9, 11, rng, 2)
    parts = list(roi_max_pools(features, windows, 3, chunk=7))
    assert [len(part) for part in parts] == [min(7, rois - start) for start in range(0, max(rois, 1), 7)]
    assert torch.equal(torch.cat(parts), roi_max_pool(features, windows, 3))


# --------------------------------------------------------------------------------------------------------------- rings


def test_values_inside_the_inner_rectangle_of_a_ring_are_zero() -> None:
    """Checks 5 x 5 cells with a hole of one, three and no cells: its first and last rows and columns still count."""
    features = torch.arange(1.0, 26).reshape(1, 1, 5, 5)
    features[0, 0, 2, 2] = 99
    whole = [0.0, 0, 0, 4, 4]
    windows = torch.tensor([[*whole, 1, 1, 3, 3], [*whole, 0, 1, 4, 3], [*whole, 1, 1, 2, 3]])
    # A row of two cells of each ring: 3 x 3 values of the map, which share the middle row or column.
    expected = [[[12, 15], [23, 25]], [[11, 15], [23, 25]], [[99, 99], [99, 99]]]
    assert roi_max_pool(features, windows, 2)[:, 0].tolist() == expected
    assert ring_max_pool(features, windows, 2)[:, 0].tolist() == expected


def _plain_ring(features: Tensor, window: list[int], size: int) -> Tensor:
    """Pools one ring with torchvision on a copy of the map whose hole is zero."""
    image, outer, (left, top, right, bottom) = window[0], window[1:5], window[5:]
    inside = torch.zeros(features.shape[2:], dtype=torch.bool)
    inside[max(top + 1, 0) : max(bottom, 0), max(left + 1, 0) : max(right, 0)] = True
    return roi_pool(torch.where(inside, 0, features), torch.tensor([[image, *outer]]).to(features), (size, size))


@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20), st.integers(1, 7), st.booleans())
def test_a_ring_is_a_window_on_a_map_with_zeros(seed: int, height: int, width: int, size: int, positive: bool) -> None:
    """Compares values and, where no zero of the hole ties with them, gradients."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, height, width, generator=rng)
    features = (features.abs() + 0.1 if positive else features).requires_grad_()
    outer, inner = (_windows(9, 2, height, width, rng, 3) for _ in range(2))
    windows = torch.cat([outer, inner[:, 1:]], dim=1)
    plain = torch.cat([_plain_ring(features, row, size) for row in windows.long().tolist()])
    ours = ring_max_pool(features, windows, size)
    assert torch.equal(ours, plain)
    assert torch.equal(roi_max_pool(features.detach(), windows, size), plain.detach())
    weights = torch.rand(plain.shape, generator=rng)
    gradients = (torch.autograd.grad((pooled * weights).sum(), features)[0] for pooled in (ours, plain))
    torch.testing.assert_close(*gradients)


def test_equal_values_of_a_ring_pass_the_gradient_to_the_first() -> None:
    features = torch.ones(1, 1, 2, 3, requires_grad=True)
    ring_max_pool(features, torch.tensor([[0.0, 0, 0, 2, 1, 0, 0, 0, 0]]), 1).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [1, 0, 0, 0, 0, 0]


def test_rings_of_whole_numbers_have_their_lowest_in_the_hole() -> None:
    features = torch.tensor([[-128, 5, 7], [3, 100, 2], [1, -3, 0]], dtype=torch.int8)[None, None]
    windows = torch.tensor([[0, 0, 0, 2, 2, 0, 0, 2, 2], [0, 1, 1, 1, 1, 0, 0, 2, 2]])
    assert roi_max_pool(features, windows, 1).flatten().tolist() == [7, -128]


def test_no_ring() -> None:
    features = torch.zeros(1, 2, 3, 3)
    for pool in (roi_max_pool, ring_max_pool):
        assert pool(features, torch.zeros(0, 9), 7).shape == (0, 2, 7, 7)
