"""Samplers that do not use the losses."""

import pytest
import torch
from torch import Tensor

from ohem.rois import RoIs, match
from ohem.samplers import AllSampler, IoUBalancedSampler, RandomSampler, RoISampler
from tests.helpers.contracts import mini_batches
from tests.helpers.make_rois import make_rois


def not_called() -> Tensor:
    raise AssertionError("the read-only pass was run")


@pytest.mark.parametrize("sampler", [AllSampler(), RandomSampler(), IoUBalancedSampler()], ids=str)
def test_losses_are_not_computed(sampler: RoISampler) -> None:
    for rois in mini_batches().values():
        sampler(rois, not_called)


def test_all_takes_every_roi_except_ignored() -> None:
    assert AllSampler()(make_rois([0, -1, 2, 0, -1]), not_called).tolist() == [0, 2, 3]


def _random(rois: RoIs, sampler: RandomSampler, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return sampler(rois, not_called)


def _plenty(images: int = 1) -> RoIs:
    """Makes 50 foreground RoIs per image, 50 background RoIs with IoU 0.3, and 100 with IoU 0.05."""
    return make_rois(
        ([1] * 50 + [0] * 150) * images,
        ious=([0.8] * 50 + [0.3] * 50 + [0.05] * 100) * images,
        images=[i for i in range(images) for _ in range(200)],
        num_images=images,
    )


def test_a_quarter_is_foreground() -> None:
    rois = _plenty(images=2)
    chosen = rois[_random(rois, RandomSampler(64, bg_lo=0.0))]
    for image in (0, 1):
        labels = chosen.labels[chosen.images == image]
        assert len(labels) == 64
        assert (labels > 0).sum() == 16


@pytest.mark.parametrize(("size", "fraction", "expected"), [(64, 0.5, 32), (10, 0.25, 2), (64, 0.0, 0), (8, 1.0, 8)])
def test_share_of_foreground_is_not_exceeded(size: int, fraction: float, expected: int) -> None:
    rois = _plenty()
    assert rois[_random(rois, RandomSampler(size, fg_fraction=fraction))].foreground.sum() == expected


def test_background_fills_the_rest_of_the_batch() -> None:
    rois = make_rois([1] * 3 + [0] * 100, ious=[0.8] * 3 + [0.2] * 100)
    chosen = rois[_random(rois, RandomSampler(64))]
    assert chosen.foreground.sum() == 3
    assert len(chosen) == 64


def test_background_is_drawn_from_the_range_of_iou() -> None:
    rois = _plenty()
    chosen = rois[_random(rois, RandomSampler(64))]
    assert chosen.ious[~chosen.foreground].unique().tolist() == pytest.approx([0.3])
    chosen = rois[_random(rois, RandomSampler(64, bg_lo=0.0, bg_hi=0.1))]
    assert chosen.ious[~chosen.foreground].unique().tolist() == pytest.approx([0.05])


def test_range_includes_only_its_lower_end() -> None:
    rois = make_rois([0] * 4, ious=[0.25, 0.5, 0.375, 0.125])
    assert sorted(_random(rois, RandomSampler(64, bg_lo=0.25)).tolist()) == [0, 2]
    assert sorted(_random(rois, RandomSampler(64, bg_lo=0.125, bg_hi=0.375)).tolist()) == [0, 3]


def test_any_background_is_drawn_if_the_range_is_empty_in_the_image() -> None:
    """Image 0 has RoIs in the range and image 1 has none, but background is drawn from both."""
    rois = make_rois([0, 0, 0, 0, -1], ious=[0.3, 0.0, 0.0, 0.05, 0.3], images=[0, 0, 1, 1, 1], num_images=2)
    assert sorted(_random(rois, RandomSampler(64)).tolist()) == [0, 2, 3]


@pytest.mark.parametrize("sampler", [RandomSampler(64), IoUBalancedSampler(64)], ids=str)
def test_an_image_without_an_object_gives_a_full_batch_of_background(sampler: RoISampler) -> None:
    """Checks a negative next to an annotated image: 64 RoIs of each, with a fixed `bg_lo` of 0.1."""
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    corners = torch.rand(100, 2) * 50
    proposals = torch.cat([corners, corners + 20], 1)
    truth = {"boxes": proposals[:1], "labels": torch.tensor([1])}
    rois = match([proposals, proposals], [truth, nothing])
    chosen = sampler(rois, not_called)
    assert (rois.images[chosen] == 1).sum() == 64
    assert (rois.labels[chosen][rois.images[chosen] == 1] == 0).all()


def test_scarce_background_is_not_drawn_twice() -> None:
    rois = make_rois([1, 0, 0], ious=[0.9, 0.3, 0.0])
    assert sorted(_random(rois, RandomSampler(64)).tolist()) == [0, 1]


def test_foreground_below_fg_iou_is_not_sampled() -> None:
    rois = make_rois([1, 1, 0], ious=[0.6, 0.75, 0.3])
    assert sorted(_random(rois, RandomSampler(64, fg_iou=0.75)).tolist()) == [1, 2]


def test_every_roi_is_drawn_at_some_time_and_seeds_differ() -> None:
    rois = _plenty()
    draws = [_random(rois, RandomSampler(64, bg_lo=0.0), seed) for seed in range(100)]
    assert len(torch.cat(draws).unique()) == len(rois)
    assert not torch.equal(draws[0], draws[1])


def test_defaults_are_those_of_the_paper() -> None:
    assert RandomSampler() == RandomSampler(64, 0.25, 0.5, 0.1, 0.5)


def _bins(rois: RoIs, chosen: Tensor) -> list[int]:
    """Counts the chosen background RoIs with IoU 0.05, 0.2 and 0.4."""
    ious = rois[chosen].ious[~rois[chosen].foreground]
    return [int((ious == value).sum()) for value in torch.tensor([0.05, 0.2, 0.4])]


def test_background_is_balanced_over_ranges_of_iou() -> None:
    rois = make_rois([1] * 50 + [0] * 300, ious=[0.8] * 50 + [0.05] * 200 + [0.2] * 60 + [0.4] * 40)
    torch.manual_seed(0)
    chosen = IoUBalancedSampler(64)(rois, not_called)
    assert rois[chosen].foreground.sum() == 16
    assert _bins(rois, chosen) == [16, 16, 16]


def test_rest_of_a_small_range_is_drawn_from_the_others() -> None:
    rois = make_rois([0] * 215, ious=[0.05] * 200 + [0.2] * 10 + [0.4] * 5)
    torch.manual_seed(0)
    easy, middle, close = _bins(rois, IoUBalancedSampler(30)(rois, not_called))
    assert (easy, middle, close) == (15, 10, 5)
