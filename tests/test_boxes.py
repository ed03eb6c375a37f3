"""Box coding: the authors' recorded values, and encoding and decoding as inverses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.boxes import MAX_LOG_SCALE, area, clip, decode, encode, from_inclusive, intersection, pairwise_iou
from tests.helpers.reference import needs_shared, reference


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_from_inclusive_adds_the_last_pixel() -> None:
    one_pixel = torch.tensor([[3.0, 4.0, 3.0, 4.0]])
    assert from_inclusive(one_pixel).tolist() == [[3.0, 4.0, 4.0, 5.0]]
    assert one_pixel.tolist() == [[3.0, 4.0, 3.0, 4.0]]


def test_encode_by_hand() -> None:
    """Encodes from 10 x 20 centred at (5, 10) to 20 x 20 centred at (20, 15): 1.5 widths right, 1/4 height down."""
    deltas = encode(torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[10.0, 5.0, 30.0, 25.0]]))
    torch.testing.assert_close(deltas, torch.tensor([[1.5, 0.25, math.log(2), 0.0]]))


def test_decode_by_hand() -> None:
    boxes = decode(torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[1.5, 0.25, math.log(2), 0.0]]))
    torch.testing.assert_close(boxes, torch.tensor([[10.0, 5.0, 30.0, 25.0]]))


def test_no_regression_is_the_box_itself() -> None:
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 1.0, 1.0]])
    assert torch.equal(encode(boxes, boxes), torch.zeros(2, 4))
    assert torch.equal(decode(boxes, torch.zeros(2, 4)), boxes)


def test_decode_one_or_one_per_class() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 9.0, 9.0]])
    deltas = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    actual = decode(boxes, deltas)
    assert actual.shape == (2, 3, 4)
    for c in range(3):
        assert torch.equal(actual[:, c], decode(boxes, deltas[:, c]))


def test_no_boxes() -> None:
    empty = torch.zeros(0, 4)
    assert encode(empty, empty).shape == (0, 4)
    assert decode(empty, torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    assert clip(empty, (5, 5)).shape == (0, 4)
    assert intersection(empty, torch.zeros(3, 4)).shape == (0, 3)


def test_a_wild_regression_stays_finite() -> None:
    actual = decode(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([[0.0, 0.0, 1e6, -1e6]]))
    assert actual.isfinite().all()
    torch.testing.assert_close(actual[0, 2] - actual[0, 0], torch.tensor(16 * math.exp(MAX_LOG_SCALE)))


def test_clip() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 200.0, 200.0], [10.0, 20.0, 30.0, 40.0], [150.0, 150.0, 160.0, 160.0]])
    clipped = [[0.0, 0.0, 120.0, 90.0], [10.0, 20.0, 30.0, 40.0], [120.0, 90.0, 120.0, 90.0]]
    assert clip(boxes, (90, 120)).tolist() == clipped
    assert clip(boxes[:, None], (90, 120)).tolist() == [[box] for box in clipped]


def test_intersection() -> None:
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor(
        [[5.0, 5.0, 20.0, 20.0], [2.0, 2.0, 4.0, 5.0], [10.0, 0.0, 20.0, 10.0], [90.0, 90.0, 99.0, 99.0]]
    )
    assert intersection(a, others).tolist() == [[25.0, 6.0, 0.0, 0.0]]


def test_volumes_share_a_volume() -> None:
    a = torch.tensor([[0.0, 0.0, 0.0, 10.0, 10.0, 10.0]])
    others = torch.tensor([[5.0, 5.0, 5.0, 20.0, 20.0, 20.0], [0.0, 0.0, 8.0, 10.0, 10.0, 10.0]])
    assert area(others).tolist() == [3375.0, 200.0]
    assert intersection(a, others).tolist() == [[125.0, 200.0]]
    torch.testing.assert_close(pairwise_iou(a, others), torch.tensor([[125 / 4250, 0.2]]))
    with pytest.raises(ValueError, match=r"b must be of shape \(B, 6\), not \(1, 4\)"):
        intersection(a, a[:, :4])
    with pytest.raises(ValueError, match=r"a must be of shape \(R, 4\), not \(1, 5\)"):
        intersection(a[:, :5], a)


sides = st.floats(1, 500)
places = st.floats(-100, 1000)


@st.composite
def some_boxes(draw: st.DrawFn) -> Tensor:
    x, y, w, h = draw(places), draw(places), draw(sides), draw(sides)
    return tensor([[x, y, x + w, y + h]])


@given(some_boxes(), some_boxes())
def test_decode_undoes_encode(boxes: Tensor, targets: Tensor) -> None:
    deltas = encode(boxes, targets)
    if (deltas[:, 2:] > MAX_LOG_SCALE).any():  # sides more than 62 times as long cannot be decoded
        return
    torch.testing.assert_close(decode(boxes, deltas), targets, rtol=0, atol=1e-8)


@given(some_boxes(), some_boxes(), places, places, st.floats(0.1, 10))
def test_targets_do_not_depend_on_place_or_scale(boxes: Tensor, targets: Tensor, x: float, y: float, s: float) -> None:
    shift = tensor([x, y, x, y])
    torch.testing.assert_close(
        encode(s * (boxes + shift), s * (targets + shift)), encode(boxes, targets), rtol=1e-6, atol=1e-8
    )


# ------------------------------------------------------------------------------------------------ the authors' values

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@needs_shared
def test_recorded_targets() -> None:
    """Converts the authors' boxes, which end with the last pixel and have widths x2 - x1 + 1."""
    case = reference("box_coding")
    actual = encode(from_inclusive(tensor(case["ex"])), from_inclusive(tensor(case["gt"])))
    torch.testing.assert_close(actual, tensor(case["targets"]), **EXACT)


@needs_shared
def test_recorded_targets_of_the_first_fast_rcnn() -> None:
    """Checks the first version, whose widths x2 - x1 are those of our boxes without conversion."""
    case = reference("box_coding")
    actual = encode(tensor(case["ex"]), tensor(case["gt"]))
    torch.testing.assert_close(actual, tensor(case["targets_original_fast_rcnn_eps_convention"]), **EXACT)


@needs_shared
def test_recorded_decoding_and_clipping() -> None:
    """Decodes two classes in each row.

    The authors' decoder uses widths with the "+ 1" but does not subtract it from the corner that it returns. The
    result has an exclusive end and equals ours without conversion. They then clip it to the last pixel, W - 1, as if
    the end were inclusive, which equals ours with an image that is one pixel smaller.
    """
    case = reference("box_coding")
    height, width = case["clip_shape_hw"]
    actual = decode(from_inclusive(tensor(case["ex"])), tensor(case["deltas"]).unflatten(1, (2, 4)))
    torch.testing.assert_close(actual.flatten(1), tensor(case["decoded"]), **EXACT)
    torch.testing.assert_close(clip(actual, (height - 1, width - 1)).flatten(1), tensor(case["clipped"]), **EXACT)


@needs_shared
def test_recorded_round_trip() -> None:
    """Checks that the authors' round trip ends one pixel further right and below, at the box's exclusive end."""
    case = reference("box_coding")
    ex, gt = tensor(case["ex"]), tensor(case["gt"])
    ours = decode(from_inclusive(ex), encode(from_inclusive(ex), from_inclusive(gt)))
    torch.testing.assert_close(ours - gt, tensor(case["roundtrip_minus_gt"]), **EXACT)


def test_exact_separates_the_conventions() -> None:
    ex, gt = tensor([[87.2, 5.2, 372.3, 303.9]]), tensor([[94.2, 4.4, 372.6, 298.2]])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(encode(ex, gt), encode(from_inclusive(ex), from_inclusive(gt)), **EXACT)
