"""Resizing by the authors' rule, and mirroring."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ohem.data.transforms import flip, flip_boxes, resize, scale_factor
from tests.helpers.reference import needs_shared, reference

SIDES = st.integers(1, 3000)


@needs_shared
def test_scale_factor_equals_the_authors() -> None:
    cases = reference("image_scale")["scales"]
    assert len(cases) > 20
    for case in cases:
        assert scale_factor(case["h"], case["w"], case["target"], case["max_size"]) == case["scale"], case


def test_scale_factor_by_hand() -> None:
    assert scale_factor(300, 400, short=600, long=1000) == 2.0
    assert scale_factor(100, 400, short=600, long=1000) == 2.5
    # 1000.49 pixels round to 1000, which is allowed; 1000.51 are not.
    assert scale_factor(10000, 10004, short=1000, long=1000) == 0.1
    assert scale_factor(10000, 10006, short=1000, long=1000) == 1000 / 10006


@given(SIDES, SIDES, st.integers(1, 1000), st.integers(0, 1000))
def test_scaled_sides_keep_within_their_bounds(height: int, width: int, short: int, more: int) -> None:
    scale = scale_factor(height, width, short, short + more)
    assert scale == scale_factor(width, height, short, short + more)
    assert round(scale * max(height, width)) <= short + more
    assert scale * min(height, width) <= short + 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resize_keeps_dtype_and_constant(dtype: torch.dtype) -> None:
    image = torch.full((3, 33, 50), 77, dtype=dtype)
    for scale, size in ((0.5, (3, 16, 25)), (1.5, (3, 50, 75)), (0.001, (3, 1, 1))):
        resized = resize(image, scale)
        assert resized.shape == size
        assert resized.dtype == dtype
        assert torch.all((resized.float() - 77).abs() < 1e-3)
    assert torch.equal(resize(image, 1.0), image)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_bytes_are_resized_as_floats_are(width: int) -> None:
    """Checks widths of 1, where torch 2.15 fails on uint8 or is wrong by up to 200."""
    image = torch.randint(0, 256, (3, 40, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for scale in (0.1, 0.5, 2.0):
        assert torch.all((resize(image, scale).float() - resize(image.float(), scale)).abs() <= 1)


def test_resize_is_antialiased() -> None:
    """Makes every fourth column bright: at a quarter of the size all is dim, where sampling alone would miss them."""
    stripes = (torch.arange(64) % 4 == 0).to(torch.uint8).mul(200).expand(3, 64, 64)
    inside = resize(stripes, 0.25)[:, 2:-2, 2:-2].int()
    assert torch.all((inside - 50).abs() < 20)


@given(SIDES.flatmap(lambda width: st.tuples(st.just(width), st.lists(st.integers(0, width), min_size=2, max_size=2))))
def test_flip_twice_is_identity(case: tuple[int, list[int]]) -> None:
    width, (x1, x2) = case
    boxes = torch.tensor([[min(x1, x2), 3, max(x1, x2), 9]], dtype=torch.float32)
    flipped = flip_boxes(boxes, width)
    assert torch.equal(flip_boxes(flipped, width), boxes)
    assert 0 <= flipped[0, 0] <= flipped[0, 2] <= width


def test_flipped_box_holds_the_flipped_pixels() -> None:
    image = torch.arange(3 * 5 * 8, dtype=torch.uint8).reshape(3, 5, 8)
    boxes = torch.tensor([[1.0, 2.0, 4.0, 5.0]])
    x1, y1, x2, y2 = flip_boxes(boxes, 8)[0].int().tolist()
    assert (x1, y1, x2, y2) == (4, 2, 7, 5)
    assert torch.equal(flip(image)[:, y1:y2, x1:x2], image[:, 2:5, 1:4].flip(-1))
    assert flip_boxes(torch.zeros(0, 4), 8).shape == (0, 4)


@needs_shared
def test_flip_equals_the_authors() -> None:
    case = reference("flip")
    end = torch.tensor([0, 0, 1, 1])  # the authors' end is inclusive
    ours = flip_boxes(torch.tensor(case["boxes"]) + end, case["width"]) - end
    assert ours.tolist() == case["flipped"]
