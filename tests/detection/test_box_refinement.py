"""Iterative box regression with voting, with RoI networks whose results can be counted by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.boxes import encode
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.post_process import BoxScores, PostProcess, ScoreBoxes
from tests.helpers.make_rois import random_boxes

SIZE = (96, 128)
POST = PostProcess()
PLAIN = BoxRefinement(iterations=1, voting=False)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 4)


class Halfway:
    """Halves the distance to the one object in each iteration; `calls` has the boxes of each call.

    The score of a box whose left side is x1 is x1 / 100.
    """

    def __init__(self, target: list[float]) -> None:
        self.target = rows(target)
        self.calls: list[Tensor] = []

    def __call__(self, boxes: Tensor) -> BoxScores:
        self.calls.append(boxes)
        deltas = encode(boxes, (boxes + self.target) / 2)
        score = boxes[:, 0] / 100
        scores = torch.stack([1 - score, score], dim=1)
        return BoxScores(scores, torch.stack([deltas, deltas], dim=1))


def random_scores(seed: int, classes: int = 3) -> tuple[ScoreBoxes, Tensor]:
    """Returns proposals and a RoI network with random results, which are the same for the same box."""
    rng = torch.Generator().manual_seed(seed)
    weights = torch.randn(4, 5 * (classes + 1), generator=rng)

    def score_boxes(boxes: Tensor) -> BoxScores:
        out = (torch.sin(boxes / 10) @ weights).reshape(len(boxes), 5, classes + 1)
        return BoxScores((2 * out[:, 0]).softmax(dim=1), 0.1 * out[:, 1:].transpose(1, 2))

    return score_boxes, random_boxes(40, rng)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(st.integers(0, 10_000), st.sampled_from([0.001, 0.2]))
def test_one_iteration_without_voting_is_the_plain_post_process(seed: int, score: float) -> None:
    score_boxes, proposals = random_scores(seed)
    post = PostProcess(score=score, max_detections=30)
    scores, deltas = score_boxes(proposals)
    assert same(PLAIN([score_boxes], proposals, SIZE, post), post(scores, deltas, proposals, SIZE))


@given(st.integers(0, 10_000))
def test_nothing_scores_high_enough_to_be_relocated_again(seed: int) -> None:
    score_boxes, proposals = random_scores(seed)
    high = replace(PLAIN, iterations=3, rescore_score=1.0)
    assert same(high([score_boxes], proposals, SIZE, POST), PLAIN([score_boxes], proposals, SIZE, POST))


@given(st.integers(0, 10_000), st.sampled_from(["all", "scored"]))
def test_voting_leaves_scores_labels_and_number(seed: int, voters: str) -> None:
    score_boxes, proposals = random_scores(seed)
    refine = BoxRefinement(voters=voters)  # type: ignore[arg-type]
    plain, voted = (r([score_boxes], proposals, SIZE, POST) for r in (replace(refine, voting=False), refine))
    assert torch.equal(plain["scores"], voted["scores"])
    assert torch.equal(plain["labels"], voted["labels"])
    assert plain["boxes"].shape == voted["boxes"].shape
    assert not torch.equal(plain["boxes"], voted["boxes"])
    assert ((voted["boxes"] >= 0) & (voted["boxes"] <= torch.tensor([128, 96, 128, 96]))).all()


def test_second_iteration_by_hand() -> None:
    """Moves box (40, 20, 60, 40) towards (80, 20, 120, 40): to x1 = 60 with score 0.4, then x1 = 70 with score 0.6."""
    score_boxes, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    detections = BoxRefinement(2, voting=False)([score_boxes], proposals, SIZE, PostProcess(nms_iou=1.0))
    assert [boxes.tolist() for boxes in score_boxes.calls] == [[[40, 20, 60, 40]], [[60, 20, 90, 40]]]
    torch.testing.assert_close(detections["boxes"], rows([70.0, 20.0, 105.0, 40.0], [60.0, 20.0, 90.0, 40.0]))
    torch.testing.assert_close(detections["scores"], torch.tensor([0.6, 0.4]))


def test_union_nms_and_vote_by_hand() -> None:
    """Counts with an IoU of 20 / 45: the first box is suppressed at 0.3, votes at 0.4, and does not vote at 0.5."""
    score_boxes, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    kept = BoxRefinement()([score_boxes], proposals, SIZE, POST)
    torch.testing.assert_close(kept["boxes"], rows([70.0, 20.0, 105.0, 40.0]))
    voted = BoxRefinement(vote_iou=0.4)([score_boxes], proposals, SIZE, POST)
    torch.testing.assert_close(voted["boxes"], rows([66.0, 20.0, 99.0, 40.0]))  # weights 0.6 and 0.4
    torch.testing.assert_close(voted["scores"], torch.tensor([0.6]))


def test_only_high_scoring_boxes_are_scored_again() -> None:
    score_boxes = Halfway([80.0, 20.0, 120.0, 40.0])
    proposals = rows([40.0, 20.0, 60.0, 40.0], [4.0, 0.0, 20.0, 20.0], [5.0, 60.0, 25.0, 80.0])
    BoxRefinement(3)([score_boxes], proposals, SIZE, POST)
    assert [len(boxes) for boxes in score_boxes.calls] == [3, 2, 2]  # 0.4 and 0.05 are high, 0.04 is not


def test_threshold_limits_voters_only_with_the_option() -> None:
    """Checks that the first iteration's box (score 0.4), no detection at 0.5, votes for the second's (score 0.6)."""
    score_boxes, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    post, refine = PostProcess(score=0.5), BoxRefinement(vote_iou=0.4)
    torch.testing.assert_close(refine([score_boxes], proposals, SIZE, post)["boxes"], rows([66.0, 20.0, 99.0, 40.0]))
    scored = replace(refine, voters="scored")
    torch.testing.assert_close(scored([score_boxes], proposals, SIZE, post)["boxes"], rows([70.0, 20.0, 105.0, 40.0]))


def test_options_of_the_vote_reach_it() -> None:
    score_boxes, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    exact = 20 / 45
    detections = {
        options: BoxRefinement(vote_iou=exact, vote_at_least=options[0], vote_added=options[1])(
            [score_boxes], proposals, SIZE, POST
        )["boxes"][0, 0].item()
        for options in [(False, 0.0), (True, 0.0), (True, 0.2)]
    }
    # Weights 0.6 : 0.4, then 0.8 : 0.6, of x1 70 and 60.
    assert detections == pytest.approx({(False, 0.0): 70, (True, 0.0): 66, (True, 0.2): (0.8 * 70 + 0.6 * 60) / 1.4})


def test_a_class_relocates_and_votes_for_itself_only() -> None:
    """Moves one proposal to different places for two classes; neither class votes for the other."""
    targets = rows([20.0, 20.0, 40.0, 40.0], [22.0, 20.0, 42.0, 40.0])

    def score_boxes(boxes: Tensor) -> BoxScores:
        calls.append(boxes)
        deltas = encode(boxes.repeat_interleave(3, 0), torch.cat([targets[:1], targets]).repeat(len(boxes), 1))
        scores = torch.tensor([0.2, 0.5, 0.3]).expand(len(boxes), 3)
        return BoxScores(scores, deltas.reshape(-1, 3, 4))

    calls: list[Tensor] = []
    detections = BoxRefinement()([score_boxes], rows([24.0, 24.0, 44.0, 44.0]), SIZE, POST)
    torch.testing.assert_close(calls[1], targets)
    assert detections["labels"].tolist() == [1, 2]
    torch.testing.assert_close(detections["boxes"], targets)


def test_first_nms_and_top_are_of_a_class_and_of_the_proposals() -> None:
    """Uses scores 0.44, 0.42 (IoU 9 / 11 with the first, 29 / 31 after both moved), 0.40 and 0.10."""
    score_boxes = Halfway([80.0, 20.0, 120.0, 40.0])
    proposals = rows([44.0, 0, 64, 20], [42.0, 0, 62, 20], [40.0, 60, 60, 80], [10.0, 60, 30, 80])
    for refine, left in [
        (BoxRefinement(), [0, 1, 2, 3]),
        (BoxRefinement(first_nms_iou=0.8), [0, 2, 3]),
        (BoxRefinement(first_nms_iou=0.9), [0, 1, 2, 3]),
        (BoxRefinement(first_top=2), [0, 1]),
        (BoxRefinement(first_nms_iou=0.8, first_top=2), [0, 2]),
    ]:
        score_boxes.calls.clear()
        refine([score_boxes], proposals, SIZE, POST)
        expected = ((proposals + score_boxes.target) / 2)[left]
        torch.testing.assert_close(score_boxes.calls[1], expected)


def test_highest_number_of_a_class() -> None:
    """Uses two proposals: the second is better for class 1, the first for class 2."""
    proposals = rows([10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 70.0, 70.0])

    def score_boxes(boxes: Tensor) -> BoxScores:
        calls.append(boxes)
        scores = torch.where(boxes[:, :1] > 40, torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.1, 0.4, 0.5]))
        return BoxScores(scores, torch.zeros(len(boxes), 3, 4))

    calls: list[Tensor] = []
    BoxRefinement(first_top=1)([score_boxes], proposals, SIZE, POST)
    assert calls[1].tolist() == [proposals[1].tolist(), proposals[0].tolist()]


def test_no_proposals() -> None:
    score_boxes, proposals = random_scores(0)
    for refine in (BoxRefinement(), BoxRefinement(first_nms_iou=0.95, first_top=200)):
        detections = refine([score_boxes], proposals[:0], SIZE, POST)
        assert [len(detections[name]) for name in ("boxes", "labels", "scores")] == [0, 0, 0]
    assert len(BoxRefinement()([score_boxes], proposals, SIZE, PostProcess(score=1.0))["boxes"]) == 0


def test_nan_and_boxes_without_area_are_no_candidates() -> None:
    proposals = rows([40.0, 20.0, 60.0, 40.0], [10.0, 10.0, 30.0, 30.0], [500.0, 10.0, 520.0, 30.0])

    def score_boxes(boxes: Tensor) -> BoxScores:
        scores = torch.full((len(boxes), 2), 0.5)
        scores[boxes[:, 0] == 10] = torch.nan
        return BoxScores(scores, torch.zeros(len(boxes), 2, 4))

    for refine in (BoxRefinement(), BoxRefinement(first_top=1)):
        assert refine([score_boxes], proposals, SIZE, POST)["boxes"].tolist() == [[40, 20, 60, 40]]


def test_a_box_that_leaves_the_image_the_second_time_is_no_detection() -> None:
    def score_boxes(boxes: Tensor) -> BoxScores:
        deltas = torch.zeros(len(boxes), 2, 4)
        deltas[..., 0] = 5  # widths of 20 to the right: from x1 = 10 to 110, then out
        return BoxScores(torch.full((len(boxes), 2), 0.5), deltas)

    detections = BoxRefinement(voting=False)(
        [score_boxes], rows([10.0, 10.0, 30.0, 30.0]), SIZE, PostProcess(nms_iou=1.0)
    )
    assert detections["boxes"].tolist() == [[110, 10, 128, 30]]


def test_defaults_are_the_paper_s() -> None:
    refine = BoxRefinement()
    assert (refine.iterations, refine.voting, refine.vote_iou, refine.vote_at_least) == (2, True, 0.5, False)
    assert (refine.vote_added, refine.voters, refine.first_nms_iou, refine.first_top) == (0.0, "all", None, None)
