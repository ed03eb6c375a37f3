"""RoIPool without gradient: bit for bit the values of torchvision's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_pool

from ohem.kernels.roi_pool import AT_ONCE, roi_max_pool, roi_max_pools


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
