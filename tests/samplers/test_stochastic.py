"""Samplers that draw hard RoIs with a higher chance: their frequencies agree with the documented chances."""

import math

import pytest
import torch

from ohem.samplers import ProportionalSampler, RankSampler, RoISampler
from tests.helpers.make_rois import make_rois

DRAWS = 2000


def _frequencies(sampler: RoISampler, losses: list[float]) -> list[float]:
    """Returns the share of draws in which each RoI is drawn. `sampler` draws one RoI."""
    rois, values = make_rois([0] * len(losses)), torch.tensor(losses)
    counts = torch.zeros(len(losses))
    torch.manual_seed(0)
    for _ in range(DRAWS):
        counts[sampler(rois, lambda: values)] += 1
    assert counts.sum() == DRAWS
    return (counts / DRAWS).tolist()


def test_chance_decays_exponentially_with_the_rank() -> None:
    """With pressure 16 and 4 RoIs, every rank has half the chance of the rank before it."""
    frequencies = _frequencies(RankSampler(1, pressure=16.0), [0.1, 3.0, 2.9, 1000.0])
    assert frequencies == pytest.approx([1 / 15, 4 / 15, 2 / 15, 8 / 15], abs=0.04)


def test_pressure_1_draws_uniformly() -> None:
    assert _frequencies(RankSampler(1, pressure=1.0), [1.0, 2.0, 3.0, 4.0]) == pytest.approx([0.25] * 4, abs=0.04)


def test_chance_is_proportional_to_the_loss() -> None:
    frequencies = _frequencies(ProportionalSampler(1), [0.0, 1.0, 2.0, 5.0])
    assert frequencies == pytest.approx([0.0, 1 / 8, 2 / 8, 5 / 8], abs=0.04)


@pytest.mark.parametrize("sampler", [RankSampler(2), ProportionalSampler(2)], ids=str)
def test_every_image_is_drawn_from(sampler: RoISampler) -> None:
    """The RoIs of the other image are much harder."""
    rois = make_rois([0] * 6, images=[0, 0, 0, 1, 1, 1], num_images=2)
    chosen = sampler(rois, lambda: torch.tensor([1.0, 1.0, 1.0, 1e6, 1e6, 1e6]))
    assert rois.images[chosen].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("sampler", [RankSampler(3), ProportionalSampler(3)], ids=str)
def test_nan_is_reported_and_drawn_last(sampler: RoISampler) -> None:
    rois = make_rois([0, 0, 0, 1])
    losses = torch.tensor([math.nan, 1.0, 0.5, 2.0])
    for seed in range(20):
        torch.manual_seed(seed)
        with pytest.warns(RuntimeWarning, match="1 of 4 RoI losses are NaN"):
            assert sorted(sampler(rois, lambda: losses).tolist()) == [1, 2, 3]
