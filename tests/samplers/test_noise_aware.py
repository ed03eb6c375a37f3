"""Background that resembles an object without a box is set aside; among the rest the wrapped sampler chooses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.recorder import Recorder
from ohem.rois import IGNORE
from ohem.samplers import Losses, NoiseAwareSampler, OHEMSampler, RandomSampler
from tests.helpers.make_rois import make_rois

ROIS = make_rois([1, 0, 0, 0, 0], ious=[1.0, 0.0, 0.1, 0.05, 0.0])
LOSSES = [0.1, 3.0, 2.0, math.log(2), 0.6]
"""Of the isolated background, p(object) is 0.95 and 0.5 (both set aside) and 0.45; RoI 2 overlaps an object."""


def fixed(values: list[float]) -> Losses:
    """Returns losses that do not depend on the weights, as those of background do not on that of the box loss."""

    def losses(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
        return torch.tensor(values) * cls_weight

    return losses


def test_confident_isolated_background_is_set_aside() -> None:
    sampler = NoiseAwareSampler(OHEMSampler(3, nms_iou=None), warmup=0)
    assert sampler.suspects(ROIS, torch.tensor(LOSSES)).tolist() == [False, True, False, True, False]
    assert sampler(ROIS, fixed(LOSSES)).tolist() == [2, 4, 0]


def test_ignored_and_foreground_rois_are_no_suspects() -> None:
    rois = make_rois([IGNORE, 1, 0])
    rois = replace(rois, ious=torch.zeros(3))
    assert NoiseAwareSampler().suspects(rois, torch.full((3,), 9.0)).tolist() == [False, False, True]


def test_nothing_is_set_aside_before_the_warm_up_is_over() -> None:
    plain = OHEMSampler(3, nms_iou=None)
    sampler = NoiseAwareSampler(plain, warmup=2)
    choices = [sampler(ROIS, fixed(LOSSES)).tolist() for _ in range(3)]
    assert choices == [[1, 2, 3], [1, 2, 3], [2, 4, 0]]


def test_the_recorder_counts_what_is_set_aside() -> None:
    recorder = Recorder(NoiseAwareSampler(OHEMSampler(3, nms_iou=None), warmup=1))
    for expected in (0.0, 2.0, 2.0):
        recorder(ROIS, fixed(LOSSES))
        assert recorder.statistics()["set_aside"] == expected
    assert "set_aside" in repr(recorder)
    plain = Recorder(OHEMSampler(3))
    plain(ROIS, fixed(LOSSES))
    assert "set_aside" not in plain.statistics()


def test_begin_step_continues_a_resumed_training() -> None:
    sampler = NoiseAwareSampler(OHEMSampler(3, nms_iou=None), warmup=100)
    sampler.begin_step(100)
    assert sampler(ROIS, fixed(LOSSES)).tolist() == [1, 2, 3]
    assert sampler(ROIS, fixed(LOSSES)).tolist() == [2, 4, 0]
    with pytest.raises(ValueError, match="step must be at least 1"):
        sampler.begin_step(0)


def test_a_fresh_sampler_is_equal_to_a_used_one() -> None:
    used = NoiseAwareSampler(warmup=1)
    used(ROIS, fixed(LOSSES))
    assert used == NoiseAwareSampler(warmup=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0), (0.5, 0.0)])
def test_the_read_only_pass_runs_once_and_its_weights_do_not_matter(weights: tuple[float, float]) -> None:
    calls: list[tuple[float, float]] = []

    def losses(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
        calls.append((cls_weight, box_weight))
        return fixed(LOSSES)(cls_weight, box_weight)

    sampler = NoiseAwareSampler(OHEMSampler(3, nms_iou=None, cls_weight=weights[0], box_weight=weights[1]), warmup=0)
    assert sampler(ROIS, losses).tolist() == [2, 4, 0]
    assert calls == [weights]


def test_a_sampler_without_losses_can_be_wrapped() -> None:
    sampler = NoiseAwareSampler(RandomSampler(64, bg_lo=0.0), warmup=0)
    assert sorted(sampler(ROIS, fixed(LOSSES)).tolist()) == [0, 2, 4]


def test_a_ranking_without_the_classification_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="must not have a cls_weight of 0"):
        NoiseAwareSampler(OHEMSampler(cls_weight=0.0))


@given(st.lists(st.tuples(st.integers(-1, 2), st.floats(0, 1), st.floats(0, 20)), min_size=1, max_size=30))
def test_the_choice_is_that_of_the_wrapped_sampler_among_the_others(rows: list[tuple[int, float, float]]) -> None:
    labels, ious, values = (list(column) for column in zip(*rows, strict=True))
    rois = make_rois(labels, ious=ious)
    losses = torch.tensor(values)
    sampler = NoiseAwareSampler(OHEMSampler(5), warmup=0)
    rest = (~sampler.suspects(rois, losses)).nonzero().squeeze(1)
    expected = rest[sampler.sampler(rois[rest], lambda *_: losses[rest])]
    assert torch.equal(sampler(rois, lambda *_: losses), expected)


@given(st.lists(st.floats(0, 60), min_size=5, max_size=5))
def test_confidence_1_sets_nothing_aside(values: list[float]) -> None:
    plain = OHEMSampler(3)
    sampler = NoiseAwareSampler(plain, confidence=1.0, warmup=0)
    assert torch.equal(sampler(ROIS, fixed(values)), plain(ROIS, fixed(values)))
