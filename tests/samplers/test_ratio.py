"""Hard background at a ratio to the foreground, in mini-batches small enough to check by hand."""

import math
import warnings

import pytest
import torch

from ohem.samplers import RatioSampler
from tests.helpers.make_rois import make_rois


def choose(sampler: RatioSampler, labels: list[int], losses: list[float], images: list[int] | None = None) -> list[int]:
    rois = make_rois(labels, images=images, num_images=max(images or [0]) + 1)
    return sampler(rois, lambda: torch.tensor(losses)).tolist()


def test_all_positives_and_the_hardest_negatives_are_chosen() -> None:
    labels, losses = [0, 1, 0, 0, 0, 0, -1], [1.0, 0.1, 5.0, 2.0, 4.0, 3.0, 9.0]
    assert choose(RatioSampler(), labels, losses) == [1, 2, 4, 5]
    assert choose(RatioSampler(1, min_negatives=0), labels, losses) == [1, 2]


def test_ratio_holds_per_image() -> None:
    labels, images = [1, 0, 0, 1, 0, 2], [0, 0, 0, 1, 1, 1]
    assert choose(RatioSampler(1, min_negatives=0), labels, [0.0, 1.0, 2.0, 0.0, 0.5, 0.0], images) == [0, 2, 3, 5, 4]


def test_positives_are_not_counted_twice_if_negatives_are_scarce() -> None:
    assert choose(RatioSampler(3), [1, 2, 0, 1], [1.0, 2.0, 3.0, 4.0]) == [0, 1, 3, 2]


def test_image_without_an_object_is_trained_on() -> None:
    losses = [1.0, 4.0, 2.0, 3.0]
    assert choose(RatioSampler(), [0] * 4, losses) == [1, 3, 2]
    assert choose(RatioSampler(min_negatives=1), [0] * 4, losses) == [1]
    assert choose(RatioSampler(min_negatives=0), [0] * 4, losses) == []


@pytest.mark.parametrize(("ratio", "positives", "negatives"), [(7 / 3, 3, 7), (0.5, 3, 2), (0.1, 1, 1), (0.0, 2, 0)])
def test_number_of_negatives_is_rounded_up(ratio: float, positives: int, negatives: int) -> None:
    labels = [1] * positives + [0] * 20
    chosen = choose(RatioSampler(ratio, min_negatives=0), labels, [1.0] * len(labels))
    assert len(chosen) == positives + negatives


def test_only_negatives_suppress_and_are_suppressed() -> None:
    rois = make_rois([1, 0, 0, 0], boxes=[[0.0, 0.0, 10.0, 10.0]] * 3 + [[50.0, 50.0, 60.0, 60.0]])
    losses = torch.tensor([9.0, 1.0, 2.0, 0.5])
    assert RatioSampler()(rois, lambda: losses).tolist() == [0, 2, 1, 3]
    assert RatioSampler(nms_iou=0.7)(rois, lambda: losses).tolist() == [0, 2, 3]


def test_nan_is_reported_and_mined_last() -> None:
    with pytest.warns(RuntimeWarning, match="1 of 3 RoI losses are NaN"):
        assert choose(RatioSampler(min_negatives=1), [0, 0, 0], [math.nan, 1.0, 2.0]) == [2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(RatioSampler(), [0, 1], [1.0, 2.0])
