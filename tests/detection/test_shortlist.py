"""The shortlist: which RoIs a visit sees, what is remembered, and the choice of the exact pass where all are seen."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ohem.detection.shortlist import LARGEST, ROUND, Shortlist
from ohem.rois import RoIs, match
from ohem.samplers import OHEMSampler, RandomSampler
from tests.detection.toy_detector import Batch, assert_close, detector, losses_and_gradients, mini_batch


def rois_of(*counts: int) -> RoIs:
    """Returns background RoIs, `counts` of them in each image."""
    boxes = [torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(count, 1) for count in counts]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return match(boxes, [nothing] * len(counts))


def visit(shortlist: Shortlist, rois: RoIs, images: Sequence[int], values: Tensor) -> list[int]:
    """Ranks the RoIs that `shortlist` gives, by `values`; returns their indices."""
    kept, remembered = shortlist(rois, [{"image_id": image} for image in images])
    losses = remembered(lambda cls_weight=1.0, box_weight=1.0: values[kept])
    assert torch.equal(losses().nan_to_num(), values[kept].nan_to_num())
    return kept.tolist()


def with_ids(batch: Batch) -> Batch:
    images, proposals, targets = batch
    return images, proposals, [{**target, "image_id": torch.tensor(7 + i)} for i, target in enumerate(targets)]


def test_the_first_visit_sees_all_and_later_ones_the_hardest_and_a_part_of_the_others() -> None:
    shortlist, rois = Shortlist(2), rois_of(40)
    values = torch.arange(40.0)
    assert visit(shortlist, rois, [3], values) == list(range(40))
    others: list[int] = []
    for _ in range(ROUND):
        seen = visit(shortlist, rois, [3], values)
        assert seen == sorted(seen)
        assert {38, 39} <= set(seen)
        others += [i for i in seen if i < 38]
    assert sorted(others) == list(range(38))  # every other RoI once in a round


def test_losses_seen_are_remembered_and_the_others_keep_theirs() -> None:
    shortlist, rois = Shortlist(1), rois_of(16)
    visit(shortlist, rois, [3], torch.arange(16.0))
    seen = visit(shortlist, rois, [3], torch.full((16,), 0.5))
    assert 0 < len(seen) < 16
    expected = torch.arange(16.0)
    expected[seen] = 0.5
    assert torch.equal(shortlist.visits[3].losses.float(), expected)
    assert shortlist.visits[3].number == 2


def test_images_of_a_mini_batch_are_separate() -> None:
    shortlist = Shortlist(1)
    visit(shortlist, rois_of(5), [8], torch.tensor([5.0, 1, 1, 1, 1]))
    seen = visit(shortlist, rois_of(3, 5), [9, 8], torch.arange(8.0))
    assert seen[:3] == [0, 1, 2]  # a first visit
    assert 3 in seen[3:]
    assert len(seen) < 8
    assert shortlist.visits[9].losses.tolist() == [0, 1, 2]


def test_an_image_with_other_proposals_is_seen_anew() -> None:
    shortlist = Shortlist(1)
    visit(shortlist, rois_of(5), [8], torch.arange(5.0))
    assert visit(shortlist, rois_of(6), [8], torch.arange(6.0)) == list(range(6))
    assert len(shortlist.visits[8].losses) == 6


def test_losses_that_are_not_finite_are_seen_again() -> None:
    shortlist, rois = Shortlist(3), rois_of(9)
    values = torch.zeros(9)
    values[[2, 4, 6]] = torch.tensor([torch.nan, torch.inf, 1e9])
    visit(shortlist, rois, [0], values)
    assert shortlist.visits[0].losses[[2, 4, 6]].tolist() == [LARGEST] * 3
    assert {2, 4, 6} <= set(visit(shortlist, rois, [0], values))


def test_nothing_is_remembered_where_no_loss_is_computed() -> None:
    shortlist = Shortlist(1)
    model = detector(RandomSampler(8), shortlist=1)
    model(*with_ids(mini_batch()))
    assert model.shortlist is not None
    assert model.shortlist.visits == shortlist.visits == {}


def test_a_state_is_restored() -> None:
    shortlist, rois = Shortlist(1), rois_of(5, 3)
    visit(shortlist, rois, [4, 2], torch.arange(8.0))
    visit(shortlist, rois, [4, 2], torch.arange(8.0))
    restored = Shortlist(2)
    restored.load_state_dict(shortlist.state_dict())
    assert restored.visits.keys() == {4, 2}
    for image, remembered in shortlist.visits.items():
        assert torch.equal(restored.visits[image].losses, remembered.losses)
        assert restored.visits[image].number == 2
    assert {name: len(values) for name, values in Shortlist(1).state_dict().items()} == dict.fromkeys(
        ("images", "counts", "lengths", "losses"), 0
    )


def test_updates_are_those_since_the_last_call() -> None:
    shortlist = Shortlist(1)
    visit(shortlist, rois_of(2), [4], torch.ones(2))
    visit(shortlist, rois_of(2), [5], torch.ones(2))
    assert shortlist.take_updates().keys() == {4, 5}
    assert shortlist.take_updates() == {}


def test_a_shortlist_of_all_rois_trains_as_the_exact_pass() -> None:
    batch = with_ids(mini_batch())
    exact, listed = detector(OHEMSampler(8)), detector(OHEMSampler(8), shortlist=1000)
    for _ in range(2):
        (losses, gradients), (ours, our_gradients) = (losses_and_gradients(model, batch) for model in (exact, listed))
        assert_close(losses, ours)
        assert_close(gradients, our_gradients)


def test_the_second_visit_ranks_few_and_chooses_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = with_ids(mini_batch())
    exact, listed = detector(OHEMSampler(8)), detector(OHEMSampler(8), shortlist=24)
    ranked: list[int] = []
    real = type(listed).read_only_parts
    monkeypatch.setattr(type(listed), "read_only_parts", lambda *args: ranked.append(len(args[2])) or real(*args))
    expected = losses_and_gradients(exact, batch)
    assert_close(losses_and_gradients(listed, batch)[0], expected[0])
    actual = losses_and_gradients(listed, batch)
    everything, first, second = ranked
    assert first == everything
    assert second < everything / 1.5
    # The weights are those of the first visit, so the hardest are known and the choice is the same.
    assert_close(actual[0], expected[0])
    assert_close(actual[1], expected[1])


@pytest.mark.parametrize("target", [{}, {"image_id": "a"}, {"image_id": torch.zeros(2)}])
def test_a_target_without_a_number_of_its_image(target: dict[str, Any]) -> None:
    images, proposals, targets = mini_batch()
    with pytest.raises(ValueError, match=r"targets\[1\] needs an `image_id`"):
        detector(OHEMSampler(8), shortlist=4)(
            images, proposals, [{**targets[0], "image_id": 0}, {**targets[1], **target}]
        )


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_impossible_sizes(size: object) -> None:
    with pytest.raises((TypeError, ValueError), match="size"):
        Shortlist(size)
