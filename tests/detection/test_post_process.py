"""Detections from scores and regressions, counted by hand; box voting by hand, by definition and by reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, nms

from ohem.boxes import from_inclusive
from ohem.detection import post_process
from ohem.detection.post_process import PostProcess, vote_boxes
from tests.helpers.make_rois import random_boxes
from tests.helpers.reference import needs_shared, reference

SIZE = (90, 120)
UNIT = [0.0, 0.0, 10.0, 10.0]
NEARBY = [0.0, 0.0, 10.0, 9.0]  # IoU 0.9 with the first
FAR = [50.0, 50.0, 60.0, 60.0]


def detect(
    scores: list[list[float]], boxes: list[list[float]], deltas: Tensor | None = None, post: PostProcess | None = None
) -> dict[str, list[object]]:
    """Returns the detections of rows of probabilities, background first, without regression unless given."""
    p, k1 = len(boxes), len(scores[0]) if scores else 3
    result = (post or PostProcess())(
        torch.tensor(scores).reshape(p, k1),
        torch.zeros(p, k1, 4) if deltas is None else deltas,
        torch.tensor(boxes).reshape(p, 4),
        SIZE,
    )
    return {name: value.tolist() for name, value in result.items()}


def test_highest_score_first_over_all_classes() -> None:
    result = detect([[0.5, 0.2, 0.3], [0.1, 0.5, 0.4]], [UNIT, FAR])
    assert result["boxes"] == [FAR, FAR, UNIT, UNIT]
    assert result["labels"] == [1, 2, 2, 1]
    assert result["scores"] == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_types() -> None:
    result = PostProcess()(torch.full((2, 3), 1 / 3), torch.zeros(2, 3, 4), torch.tensor([UNIT, FAR]), SIZE)
    assert result["boxes"].dtype == result["scores"].dtype == torch.float32
    assert result["labels"].dtype == torch.int64
    assert result["boxes"].shape == (4, 4)


@pytest.mark.parametrize(("most", "tries"), [(20, [1100]), (500, [2000, 4000]), (3000, [4000])])
def test_the_best_of_many_candidates_decide(most: int, tries: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has 4000 candidates; more are tried where NMS leaves too few of the best."""
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(2000, 2, generator=rng) * 60
    scores, boxes = torch.randperm(6000, generator=rng).view(2000, 3) / 6000, torch.cat([corners, corners + 20], dim=1)
    post, deltas = PostProcess(score=0, max_detections=most), torch.zeros(2000, 3, 4)
    whole = post(scores, deltas, boxes, SIZE)
    tried: list[int] = []
    real = post_process.batched_nms
    monkeypatch.setattr(post_process, "FIRST", 1100)
    monkeypatch.setattr(post_process, "batched_nms", lambda *args: tried.append(len(args[0])) or real(*args))
    parts = post(scores, deltas, boxes, SIZE)
    assert tried == tries
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_equal_scores_are_tried_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    real = post_process.batched_nms
    monkeypatch.setattr(post_process, "FIRST", 4)
    monkeypatch.setattr(post_process, "batched_nms", lambda *args: tried.append(len(args[0])) or real(*args))
    detect([[0.5, 0.5]] * 40, [UNIT, FAR] * 20, post=PostProcess(max_detections=2))
    assert tried == [40]


def test_background_is_no_detection() -> None:
    assert detect([[1.0, 0.0, 0.0]], [UNIT])["labels"] == []


def test_scores_below_the_threshold_are_dropped() -> None:
    scores = [[0.0, 0.25, 0.75], [0.5, 0.125, 0.375]]
    assert detect(scores, [UNIT, FAR], post=PostProcess(score=0.25))["scores"] == [0.75, 0.375, 0.25]
    assert detect([[0.9985, 0.0005, 0.001]], [UNIT])["labels"] == [2]  # 0.001 unless given


def test_nan_is_no_detection() -> None:
    assert detect([[math.nan] * 3, [0.5, 0.5, 0.0]], [UNIT, FAR])["boxes"] == [FAR]


def test_suppression_is_within_a_class() -> None:
    assert detect([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0]], [UNIT, NEARBY])["boxes"] == [NEARBY]
    assert detect([[0.5, 0.5, 0.0], [0.4, 0.0, 0.6]], [UNIT, NEARBY])["boxes"] == [NEARBY, UNIT]


def test_suppression_is_above_0_3_unless_given() -> None:
    lower, higher = [0.0, 0.0, 10.0, 2.9], [0.0, 0.0, 10.0, 3.1]
    scores = [[0.1, 0.9], [0.5, 0.5]]
    assert len(detect(scores, [UNIT, lower])["boxes"]) == 2
    assert len(detect(scores, [UNIT, higher])["boxes"]) == 1
    assert len(detect(scores, [UNIT, higher], post=PostProcess(nms_iou=0.5))["boxes"]) == 2


def test_suppression_is_of_regressed_boxes() -> None:
    """Uses two distant proposals that are regressed to the same place."""
    deltas = torch.zeros(2, 2, 4)
    deltas[1, 1, :2] = -5  # five widths of 10 back from (50, 50)
    result = detect([[0.1, 0.9], [0.5, 0.5]], [UNIT, FAR], deltas)
    assert result["boxes"] == [UNIT]


def test_every_class_has_its_own_regression() -> None:
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1, 0], deltas[0, 2, 1] = 1.0, 2.0
    deltas[0, 0] = 9.0
    result = detect([[0.0, 0.6, 0.4]], [UNIT], deltas)
    assert result["boxes"] == [[10.0, 0.0, 20.0, 10.0], [0.0, 20.0, 10.0, 30.0]]


def test_boxes_are_clipped_to_the_image() -> None:
    result = detect([[0.0, 1.0]], [[-5.0, 80.0, 200.0, 100.0]])
    assert result["boxes"] == [[0.0, 80.0, 120.0, 90.0]]


def test_at_most_so_many() -> None:
    boxes = [[10.0 * i, 0.0, 10.0 * i + 9, 9.0] for i in range(5)]
    scores = [[1 - s, s] for s in (0.1, 0.5, 0.3, 0.2, 0.4)]
    result = detect(scores, boxes, post=PostProcess(max_detections=3))
    assert result["scores"] == pytest.approx([0.5, 0.4, 0.3])
    assert PostProcess().max_detections == 300


def test_boxes_without_area_are_dropped_and_take_no_place() -> None:
    outside = [200.0, 0.0, 210.0, 10.0]
    result = detect([[0.1, 0.9], [0.5, 0.5]], [outside, UNIT], post=PostProcess(max_detections=1))
    assert result["boxes"] == [UNIT]


def test_no_proposals() -> None:
    result = detect([], [])
    assert result == {"boxes": [], "labels": [], "scores": []}


# ------------------------------------------------------------------------------------------------------------- voting

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
HALF = torch.tensor([[0.0, 0.0, 10.0, 5.0]])  # IoU 1/2 with it


def drawn(seed: int, n: int = 4, c: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes, candidates around them and everywhere, and their scores."""
    rng = torch.Generator().manual_seed(seed)
    boxes = random_boxes(n, rng)
    near = boxes.repeat_interleave(c // n, dim=0)
    near = near + torch.randint(-5, 6, near.shape, generator=rng)
    candidates = torch.cat([boxes, near, random_boxes(c, rng)])
    return boxes, candidates, torch.rand(len(candidates), generator=rng)


@needs_shared
def test_reference_values() -> None:
    """Converts the authors' boxes, which have inclusive ends, to our convention and back."""
    cases = reference("bbox_voting")["cases"]
    assert len(cases) == 3
    for case in cases:
        rows = torch.tensor(case["candidates"], dtype=torch.float64)
        candidates, scores = from_inclusive(rows[:, :4]), rows[:, 4]
        passing = (scores > case["score_thresh"]).nonzero()[:, 0]
        keep = passing[nms(candidates[passing], scores[passing], case["nms_iou"])]
        assert rows[keep].tolist() == case["nms_dets"]
        voted = vote_boxes(candidates[keep], candidates, scores, case["vote_iou"], at_least=True, added=case["add_val"])
        expected = torch.tensor(case["voted_dets"], dtype=torch.float64)
        torch.testing.assert_close(from_inclusive(expected[:, :4]), voted, rtol=0, atol=1e-9)


def test_by_hand() -> None:
    """Uses weights 3 and 1: three quarters of the way from the second to the first; the third is too far to vote."""
    candidates = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [5.0, 0.0, 15.0, 10.0]])
    assert vote_boxes(BOX, candidates, torch.tensor([0.75, 0.25, 0.9])).tolist() == [[0.0, 0.0, 10.0, 9.5]]
    assert vote_boxes(BOX, candidates, torch.tensor([0.75, 0.25, 0.9]), 0.8).tolist() == BOX.tolist()
    third = vote_boxes(BOX, candidates, torch.tensor([0.25, 0.25, 0.5]), 0.3)
    torch.testing.assert_close(third, torch.tensor([[2.5, 0.0, 12.5, 9.5]]))


def test_an_iou_of_exactly_the_threshold() -> None:
    both, scores = torch.cat([BOX, HALF]), torch.tensor([0.5, 0.5])
    assert torch.equal(vote_boxes(BOX, both, scores, 0.5), BOX)
    assert vote_boxes(BOX, both, scores, 0.5, at_least=True).tolist() == [[0.0, 0.0, 10.0, 7.5]]


def test_scores_below_0_do_not_vote_unless_added_to() -> None:
    both = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
    scores = torch.tensor([0.375, -0.125])
    assert torch.equal(vote_boxes(BOX, both, scores), BOX)
    assert vote_boxes(BOX, both, scores, added=0.375).tolist() == [[0.0, 0.0, 10.0, 9.5]]


def test_one_candidate_is_the_identity() -> None:
    boxes, _, scores = drawn(1)
    for box, score in zip(boxes.split(1), scores[: len(boxes)].split(1), strict=True):
        assert torch.equal(vote_boxes(box, box, score), box)


def test_without_voters_a_box_stays() -> None:
    boxes, candidates, scores = drawn(2)
    assert torch.equal(vote_boxes(boxes, torch.zeros(0, 4), torch.zeros(0)), boxes)
    assert torch.equal(vote_boxes(boxes, candidates, torch.zeros_like(scores)), boxes)
    assert torch.equal(vote_boxes(boxes, candidates + 1000, scores), boxes)
    assert vote_boxes(torch.zeros(0, 4), candidates, scores).shape == (0, 4)


def test_nan_does_not_vote() -> None:
    four = torch.cat([BOX, torch.full((1, 4), math.nan), BOX + 1, BOX + 2])
    assert torch.equal(vote_boxes(BOX, four, torch.tensor([0.5, 0.5, math.nan, 0.5]), 0.4), BOX + 1)


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]), st.booleans(), st.sampled_from([0.0, 0.2]))
def test_equals_the_definition(seed: int, iou: float, at_least: bool, added: float) -> None:
    boxes, candidates, scores = drawn(seed)
    ious = box_iou(boxes.double(), candidates.double())
    result = vote_boxes(boxes.double(), candidates.double(), scores.double(), iou, at_least=at_least, added=added)
    for i in range(len(boxes)):
        weights = [max(0.0, s + added) for s in scores.tolist()]
        near = [j for j in range(len(candidates)) if (ious[i, j] >= iou if at_least else ious[i, j] > iou)]
        expected = np.average(candidates[near].numpy(), axis=0, weights=[weights[j] for j in near])
        np.testing.assert_allclose(result[i].numpy(), expected, rtol=0, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(0.25, 4), st.floats(-50, 50))
def test_scale_and_place_do_not_matter(seed: int, scale: float, shift: float) -> None:
    boxes, candidates, scores = (values.double() for values in drawn(seed))
    voted = vote_boxes(boxes * scale + shift, candidates * scale + shift, scores, 0.5123)
    torch.testing.assert_close(voted, vote_boxes(boxes, candidates, scores, 0.5123) * scale + shift, rtol=0, atol=1e-6)


@given(st.integers(0, 10_000))
def test_the_order_and_the_unit_of_the_scores_do_not_matter(seed: int) -> None:
    boxes, candidates, scores = drawn(seed)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    voted = vote_boxes(boxes, candidates, scores)
    torch.testing.assert_close(vote_boxes(boxes, candidates[order], 7 * scores[order]), voted, rtol=0, atol=1e-3)
    assert (voted >= candidates.min(dim=0).values - 1e-3).all()
    assert (voted <= candidates.max(dim=0).values + 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_stays_also_under_autocast(dtype: torch.dtype) -> None:
    boxes, candidates, scores = (values.to(dtype) for values in drawn(3))
    plain = vote_boxes(boxes, candidates, scores)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vote_boxes(boxes, candidates, scores)
    assert plain.dtype == mixed.dtype == dtype
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-4)
