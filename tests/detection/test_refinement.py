"""Iterative box regression with voting, with RoI networks whose answers can be counted by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.boxes import encode
from ohem.detection.inference import Look, Outputs, PostProcess
from ohem.detection.refinement import BoxRefinement
from tests.make_rois import random_boxes

SIZE = (96, 128)
POST = PostProcess()
PLAIN = BoxRefinement(iterations=1, voting=False)


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 4)


class Halfway:
    """A RoI network of one class that halves the distance to where the object is; `asked` are the boxes it was shown.

    Shown a box whose left side is x1, it says x1 / 100.
    """

    def __init__(self, target: list[float]) -> None:
        self.target = rows(target)
        self.asked: list[Tensor] = []

    def __call__(self, boxes: Tensor) -> Outputs:
        self.asked.append(boxes)
        deltas = encode(boxes, (boxes + self.target) / 2)
        score = boxes[:, 0] / 100
        scores = torch.stack([1 - score, score], dim=1)
        return Outputs(scores, torch.stack([deltas, deltas], dim=1))


def random_look(seed: int, classes: int = 3) -> tuple[Look, Tensor]:
    """A RoI network that answers at random, the same each time for the same box, and proposals."""
    rng = torch.Generator().manual_seed(seed)
    weights = torch.randn(4, 5 * (classes + 1), generator=rng)

    def look(boxes: Tensor) -> Outputs:
        out = (torch.sin(boxes / 10) @ weights).reshape(len(boxes), 5, classes + 1)
        return Outputs((2 * out[:, 0]).softmax(dim=1), 0.1 * out[:, 1:].transpose(1, 2))

    return look, random_boxes(40, rng)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@given(st.integers(0, 10_000), st.sampled_from([0.001, 0.2]))
def test_one_iteration_without_voting_is_the_plain_post_process(seed: int, score: float) -> None:
    look, proposals = random_look(seed)
    post = PostProcess(score=score, max_detections=30)
    scores, deltas = look(proposals)
    assert same(PLAIN([look], proposals, SIZE, post), post(scores, deltas, proposals, SIZE))


@given(st.integers(0, 10_000))
def test_nothing_scores_high_enough_to_be_relocated_again(seed: int) -> None:
    look, proposals = random_look(seed)
    high = replace(PLAIN, iterations=3, rescore_score=1.0)
    assert same(high([look], proposals, SIZE, POST), PLAIN([look], proposals, SIZE, POST))


@given(st.integers(0, 10_000), st.sampled_from(["all", "scored"]))
def test_voting_leaves_scores_labels_and_number(seed: int, voters: str) -> None:
    look, proposals = random_look(seed)
    refine = BoxRefinement(voters=voters)  # type: ignore[arg-type]
    plain, voted = (r([look], proposals, SIZE, POST) for r in (replace(refine, voting=False), refine))
    assert torch.equal(plain["scores"], voted["scores"])
    assert torch.equal(plain["labels"], voted["labels"])
    assert plain["boxes"].shape == voted["boxes"].shape
    assert not torch.equal(plain["boxes"], voted["boxes"])
    assert ((voted["boxes"] >= 0) & (voted["boxes"] <= torch.tensor([128, 96, 128, 96]))).all()


def test_second_iteration_by_hand() -> None:
    """Box (40, 20, 60, 40) towards (80, 20, 120, 40): first to x1 = 60 with score 0.4, then to x1 = 70 with 0.6."""
    look, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    found = BoxRefinement(2, voting=False)([look], proposals, SIZE, PostProcess(nms_iou=1.0))
    assert [boxes.tolist() for boxes in look.asked] == [[[40, 20, 60, 40]], [[60, 20, 90, 40]]]
    torch.testing.assert_close(found["boxes"], rows([70.0, 20.0, 105.0, 40.0], [60.0, 20.0, 90.0, 40.0]))
    torch.testing.assert_close(found["scores"], torch.tensor([0.6, 0.4]))


def test_union_nms_and_vote_by_hand() -> None:
    """IoU of both iterations is 20 / 45: the first is suppressed at 0.3, votes at 0.4, and does not at 0.5."""
    look, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    kept = BoxRefinement()([look], proposals, SIZE, POST)
    torch.testing.assert_close(kept["boxes"], rows([70.0, 20.0, 105.0, 40.0]))
    voted = BoxRefinement(vote_iou=0.4)([look], proposals, SIZE, POST)
    torch.testing.assert_close(voted["boxes"], rows([66.0, 20.0, 99.0, 40.0]))  # weights 0.6 and 0.4
    torch.testing.assert_close(voted["scores"], torch.tensor([0.6]))


def test_only_high_scoring_boxes_are_looked_at_again() -> None:
    look = Halfway([80.0, 20.0, 120.0, 40.0])
    proposals = rows([40.0, 20.0, 60.0, 40.0], [4.0, 0.0, 20.0, 20.0], [5.0, 60.0, 25.0, 80.0])
    BoxRefinement(3)([look], proposals, SIZE, POST)
    assert [len(boxes) for boxes in look.asked] == [3, 2, 2]  # 0.4 and 0.05 are high, 0.04 is not


def test_threshold_does_not_limit_voters_unless_asked_to() -> None:
    """The first iteration's box (score 0.4) is no detection at 0.5, but votes for the second's (score 0.6)."""
    look, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    post, refine = PostProcess(score=0.5), BoxRefinement(vote_iou=0.4)
    torch.testing.assert_close(refine([look], proposals, SIZE, post)["boxes"], rows([66.0, 20.0, 99.0, 40.0]))
    scored = replace(refine, voters="scored")
    torch.testing.assert_close(scored([look], proposals, SIZE, post)["boxes"], rows([70.0, 20.0, 105.0, 40.0]))


def test_options_of_the_vote_reach_it() -> None:
    look, proposals = Halfway([80.0, 20.0, 120.0, 40.0]), rows([40.0, 20.0, 60.0, 40.0])
    exact = 20 / 45
    found = {
        options: BoxRefinement(vote_iou=exact, vote_at_least=options[0], vote_added=options[1])(
            [look], proposals, SIZE, POST
        )["boxes"][0, 0].item()
        for options in [(False, 0.0), (True, 0.0), (True, 0.2)]
    }
    # Weights 0.6 : 0.4, then 0.8 : 0.6, of x1 70 and 60.
    assert found == pytest.approx({(False, 0.0): 70, (True, 0.0): 66, (True, 0.2): (0.8 * 70 + 0.6 * 60) / 1.4})


def test_a_class_relocates_and_votes_for_itself_only() -> None:
    """Two classes that want the one proposal at different places: each is followed, and neither votes for the other."""
    targets = rows([20.0, 20.0, 40.0, 40.0], [22.0, 20.0, 42.0, 40.0])

    def look(boxes: Tensor) -> Outputs:
        asked.append(boxes)
        deltas = encode(boxes.repeat_interleave(3, 0), torch.cat([targets[:1], targets]).repeat(len(boxes), 1))
        scores = torch.tensor([0.2, 0.5, 0.3]).expand(len(boxes), 3)
        return Outputs(scores, deltas.reshape(-1, 3, 4))

    asked: list[Tensor] = []
    found = BoxRefinement()([look], rows([24.0, 24.0, 44.0, 44.0]), SIZE, POST)
    torch.testing.assert_close(asked[1], targets)
    assert found["labels"].tolist() == [1, 2]
    torch.testing.assert_close(found["boxes"], targets)


def test_first_nms_and_top_are_of_a_class_and_of_the_proposals() -> None:
    """Scores 0.44, 0.42 (IoU 9 / 11 with the first, 29 / 31 once both are moved), 0.40 and 0.10."""
    look = Halfway([80.0, 20.0, 120.0, 40.0])
    proposals = rows([44.0, 0, 64, 20], [42.0, 0, 62, 20], [40.0, 60, 60, 80], [10.0, 60, 30, 80])
    for refine, left in [
        (BoxRefinement(), [0, 1, 2, 3]),
        (BoxRefinement(first_nms_iou=0.8), [0, 2, 3]),
        (BoxRefinement(first_nms_iou=0.9), [0, 1, 2, 3]),
        (BoxRefinement(first_top=2), [0, 1]),
        (BoxRefinement(first_nms_iou=0.8, first_top=2), [0, 2]),
    ]:
        look.asked.clear()
        refine([look], proposals, SIZE, POST)
        expected = ((proposals + look.target) / 2)[left]
        torch.testing.assert_close(look.asked[1], expected)


def test_the_most_of_each_class() -> None:
    """The second proposal is the better one for class 1, the first for class 2."""
    proposals = rows([10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 70.0, 70.0])

    def look(boxes: Tensor) -> Outputs:
        asked.append(boxes)
        scores = torch.where(boxes[:, :1] > 40, torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.1, 0.4, 0.5]))
        return Outputs(scores, torch.zeros(len(boxes), 3, 4))

    asked: list[Tensor] = []
    BoxRefinement(first_top=1)([look], proposals, SIZE, POST)
    assert asked[1].tolist() == [proposals[1].tolist(), proposals[0].tolist()]


def test_nothing_to_look_at() -> None:
    look, proposals = random_look(0)
    for refine in (BoxRefinement(), BoxRefinement(first_nms_iou=0.95, first_top=200)):
        found = refine([look], proposals[:0], SIZE, POST)
        assert [len(found[name]) for name in ("boxes", "labels", "scores")] == [0, 0, 0]
    assert len(BoxRefinement()([look], proposals, SIZE, PostProcess(score=1.0))["boxes"]) == 0


def test_nan_and_boxes_without_area_are_no_candidates() -> None:
    proposals = rows([40.0, 20.0, 60.0, 40.0], [10.0, 10.0, 30.0, 30.0], [500.0, 10.0, 520.0, 30.0])

    def look(boxes: Tensor) -> Outputs:
        scores = torch.full((len(boxes), 2), 0.5)
        scores[boxes[:, 0] == 10] = torch.nan
        return Outputs(scores, torch.zeros(len(boxes), 2, 4))

    for refine in (BoxRefinement(), BoxRefinement(first_top=1)):
        assert refine([look], proposals, SIZE, POST)["boxes"].tolist() == [[40, 20, 60, 40]]


def test_a_box_that_leaves_the_image_the_second_time_is_no_detection() -> None:
    def look(boxes: Tensor) -> Outputs:
        deltas = torch.zeros(len(boxes), 2, 4)
        deltas[..., 0] = 5  # widths of 20 to the right: from x1 = 10 to 110, then out
        return Outputs(torch.full((len(boxes), 2), 0.5), deltas)

    found = BoxRefinement(voting=False)([look], rows([10.0, 10.0, 30.0, 30.0]), SIZE, PostProcess(nms_iou=1.0))
    assert found["boxes"].tolist() == [[110, 10, 128, 30]]


def test_defaults_are_the_paper_s() -> None:
    refine = BoxRefinement()
    assert (refine.iterations, refine.voting, refine.vote_iou, refine.vote_at_least) == (2, True, 0.5, False)
    assert (refine.vote_added, refine.voters, refine.first_nms_iou, refine.first_top) == (0.0, "all", None, None)
