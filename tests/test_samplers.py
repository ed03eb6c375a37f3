"""Every sampler against the contract, and each against what it promises."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from ohem.rois import RoIs
from ohem.samplers import AllSampler, OHEMSampler, RandomSampler, RoISampler
from tests.contracts import check_sampler, mini_batches
from tests.make_rois import make_rois

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def given(*losses: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(losses)


def not_called() -> Tensor:
    raise AssertionError("the read-only pass was run")


@pytest.mark.parametrize(
    ("sampler", "most"),
    [
        (AllSampler(), None),
        (RandomSampler(), 64),
        (RandomSampler(4), 4),
        (RandomSampler(16, bg_iou=(0.0, 0.5)), 16),
        (RandomSampler(16, fg_fraction=1.0, fg_iou=0.6), 16),
        (OHEMSampler(), 64),
        (OHEMSampler(1), 1),
        (OHEMSampler(8, per_image=False), 8),
        (OHEMSampler(8, suppress="label"), 8),
        (OHEMSampler(8, per_image=False, suppress="label", inclusive=True), 8),
        (OHEMSampler(8, nms_iou=None), 8),
        (OHEMSampler(8, nms_iou=0.0), 8),
    ],
    ids=str,
)
def test_contract(sampler: RoISampler, most: int | None) -> None:
    check_sampler(sampler, most)


@pytest.mark.parametrize("sampler", [AllSampler(), RandomSampler(), OHEMSampler()], ids=str)
def test_settings_cannot_change_under_way(sampler: RoISampler) -> None:
    with pytest.raises(FrozenInstanceError):
        sampler.batch_size = 1  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ all, and at random


@pytest.mark.parametrize("sampler", [AllSampler(), RandomSampler()], ids=str)
def test_the_losses_are_not_computed_unasked(sampler: RoISampler) -> None:
    for rois in mini_batches().values():
        sampler(rois, not_called)


def test_all_but_the_ignored() -> None:
    assert AllSampler()(make_rois([0, -1, 2, 0, -1]), not_called).tolist() == [0, 2, 3]


def _random(rois: RoIs, sampler: RandomSampler, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return sampler(rois, not_called)


def _plenty(images: int = 1) -> RoIs:
    """Of each image 50 foreground RoIs, 50 background ones with IoU 0.3, and 100 with IoU 0.05."""
    return make_rois(
        ([1] * 50 + [0] * 150) * images,
        ious=([0.8] * 50 + [0.3] * 50 + [0.05] * 100) * images,
        images=[i for i in range(images) for _ in range(200)],
        num_images=images,
    )


def test_a_quarter_is_foreground() -> None:
    rois = _plenty(images=2)
    chosen = rois[_random(rois, RandomSampler(64, bg_iou=(0.0, 0.5)))]
    for image in (0, 1):
        labels = chosen.labels[chosen.images == image]
        assert len(labels) == 64
        assert (labels > 0).sum() == 16


@pytest.mark.parametrize(("size", "fraction", "expected"), [(64, 0.5, 32), (10, 0.25, 2), (64, 0.0, 0), (8, 1.0, 8)])
def test_never_more_than_the_share_of_foreground(size: int, fraction: float, expected: int) -> None:
    rois = _plenty()
    assert rois[_random(rois, RandomSampler(size, fg_fraction=fraction))].foreground.sum() == expected


def test_background_fills_what_foreground_leaves() -> None:
    rois = make_rois([1] * 3 + [0] * 100, ious=[0.8] * 3 + [0.2] * 100)
    chosen = rois[_random(rois, RandomSampler(64))]
    assert chosen.foreground.sum() == 3
    assert len(chosen) == 64


def test_background_is_of_the_range() -> None:
    rois = _plenty()
    chosen = rois[_random(rois, RandomSampler(64))]
    assert chosen.ious[~chosen.foreground].unique().tolist() == pytest.approx([0.3])
    chosen = rois[_random(rois, RandomSampler(64, bg_iou=(0.0, 0.1)))]
    assert chosen.ious[~chosen.foreground].unique().tolist() == pytest.approx([0.05])


def test_the_range_includes_its_lower_end_only() -> None:
    rois = make_rois([0] * 4, ious=[0.25, 0.5, 0.375, 0.125])
    assert sorted(_random(rois, RandomSampler(64, bg_iou=(0.25, 0.5))).tolist()) == [0, 2]
    assert sorted(_random(rois, RandomSampler(64, bg_iou=(0.125, 0.375))).tolist()) == [0, 3]


def test_any_background_where_the_range_of_the_image_is_empty() -> None:
    """Image 0 has RoIs in the range, image 1 has none: it is not left without background."""
    rois = make_rois([0, 0, 0, 0, -1], ious=[0.3, 0.0, 0.0, 0.05, 0.3], images=[0, 0, 1, 1, 1], num_images=2)
    assert sorted(_random(rois, RandomSampler(64)).tolist()) == [0, 2, 3]


def test_background_that_is_short_is_not_drawn_twice() -> None:
    rois = make_rois([1, 0, 0], ious=[0.9, 0.3, 0.0])
    assert sorted(_random(rois, RandomSampler(64)).tolist()) == [0, 1]


def test_foreground_below_fg_iou_is_not_sampled() -> None:
    rois = make_rois([1, 1, 0], ious=[0.6, 0.75, 0.3])
    assert sorted(_random(rois, RandomSampler(64, fg_iou=0.75)).tolist()) == [1, 2]


def test_every_roi_has_its_turn_and_seeds_differ() -> None:
    rois = _plenty()
    draws = [_random(rois, RandomSampler(64, bg_iou=(0.0, 0.5)), seed) for seed in range(100)]
    assert len(torch.cat(draws).unique()) == len(rois)
    assert not torch.equal(draws[0], draws[1])


# ------------------------------------------------------------------------------------------------------------- OHEM


def test_the_losses_are_computed_once() -> None:
    calls = []

    def losses() -> Tensor:
        calls.append(1)
        return torch.tensor([1.0, 2.0])

    for sampler in (OHEMSampler(), OHEMSampler(per_image=False)):
        calls.clear()
        sampler(make_rois([0, 0], images=[0, 1], num_images=2), losses)
        assert len(calls) == 1


def test_the_hardest_of_each_image_or_of_all() -> None:
    rois = make_rois([0] * 6, images=[0, 0, 0, 1, 1, 1], num_images=2)
    losses = given(9.0, 7.0, 8.0, 1.0, 3.0, 2.0)
    assert OHEMSampler(2)(rois, losses).tolist() == [0, 2, 4, 5]
    assert OHEMSampler(2, per_image=False)(rois, losses).tolist() == [0, 2, 1, 4]
    assert OHEMSampler(1, per_image=False)(rois, losses).tolist() == [0, 2]


def test_images_need_not_be_in_order() -> None:
    rois = make_rois([0] * 4, images=[1, 0, 1, 0], num_images=2)
    assert OHEMSampler(1)(rois, given(1.0, 2.0, 3.0, 4.0)).tolist() == [3, 2]


def test_suppression_over_the_image_or_within_the_label() -> None:
    rois = make_rois([0, 0, 1, 2], boxes=[UNIT] * 4)
    losses = given(1.0, 4.0, 2.0, 3.0)
    assert OHEMSampler()(rois, losses).tolist() == [1]
    assert OHEMSampler(suppress="label")(rois, losses).tolist() == [1, 3, 2]
    assert OHEMSampler(nms_iou=None)(rois, losses).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("suppress", ["image", "label"])
@pytest.mark.parametrize("per_image", [True, False])
def test_images_never_suppress_each_other(suppress: str, per_image: bool) -> None:
    """Not even where image + N x label could be mistaken for another's."""
    labels, images = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]
    rois = make_rois(labels, boxes=[UNIT] * 6, images=images, num_images=2)
    sampler = OHEMSampler(64, per_image=per_image, suppress=suppress)  # type: ignore[arg-type]
    chosen = sampler(rois, given(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)).tolist()
    assert sorted(chosen) == ([0, 1] if suppress == "image" else [0, 1, 2, 3, 4, 5])


def test_the_last_pixel_counts_on_request() -> None:
    """IoU 56 / 81 = 0.69 without it and 9 x 8 / 100 = 0.72 with it: a decision at 0.7 turns."""
    rois = make_rois([0, 0], boxes=[[0, 0, 9, 9], [1, 1, 8, 9]])
    losses = given(2.0, 1.0)
    assert OHEMSampler()(rois, losses).tolist() == [0, 1]
    assert OHEMSampler(inclusive=True)(rois, losses).tolist() == [0]


def test_ignored_rois_are_not_mined_nor_do_they_suppress() -> None:
    """Whatever their loss, and whichever way the hardest are counted."""
    rois = make_rois([-1, 0, -1, 1], boxes=[UNIT, UNIT, FAR, FAR])
    for per_image in (True, False):
        assert OHEMSampler(per_image=per_image)(rois, given(9.0, 1.0, 9.0, 2.0)).tolist() == [3, 1]


def test_there_is_no_share_of_foreground_or_lower_bound_of_iou() -> None:
    rois = make_rois([1, 1, 1, 0, 0], ious=[0.9, 0.8, 0.7, 0.0, 0.3])
    assert OHEMSampler(3)(rois, given(3.0, 5.0, 4.0, 1.0, 2.0)).tolist() == [1, 2, 0]
    assert OHEMSampler(3)(rois, given(1.0, 1.5, 0.5, 4.0, 3.0)).tolist() == [3, 4, 1]


def test_background_is_mined_where_there_is_no_object() -> None:
    rois = make_rois([0] * 5, images=[0, 0, 0, 1, 1], num_images=2)
    assert OHEMSampler(2)(rois, given(0.1, 0.3, 0.2, 0.5, 0.4)).tolist() == [1, 2, 3, 4]


def test_fewer_survivors_than_the_batch_are_not_filled_up() -> None:
    rois = make_rois([0, 0, 0], boxes=[UNIT, UNIT, FAR])
    assert OHEMSampler(64)(rois, given(1.0, 2.0, 3.0)).tolist() == [2, 1]


def test_nan_is_told_and_mined_last() -> None:
    rois = make_rois([0, 0, 0, 1])
    for sampler in (OHEMSampler(2), OHEMSampler(2, per_image=False)):
        with pytest.warns(RuntimeWarning, match="2 of 4 RoI losses are NaN"):
            assert sampler(rois, given(math.nan, 1.0, math.nan, 2.0)).tolist() == [3, 1]
    with pytest.warns(RuntimeWarning):
        assert OHEMSampler(3)(rois, given(math.nan, 1.0, math.nan, 2.0)).tolist() == [3, 1, 0]


def test_survivors_are_counted_before_the_batch_is_cut() -> None:
    rois = make_rois([0, 0, 1, 0, -1], boxes=[UNIT, UNIT, UNIT, FAR, FAR], images=[0, 0, 0, 0, 0])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert OHEMSampler(1).survivors(rois, losses) == 2
    assert OHEMSampler(1, suppress="label").survivors(rois, losses) == 3
    assert OHEMSampler(1, nms_iou=None).survivors(rois, losses) == 4


def test_defaults_are_those_of_the_paper() -> None:
    assert OHEMSampler() == OHEMSampler(64, 0.7, True, "image", False)
    assert RandomSampler() == RandomSampler(64, 0.25, 0.5, (0.1, 0.5))
