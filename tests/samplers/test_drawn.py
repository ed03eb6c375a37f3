"""Samplers that draw at random, the harder the likelier: against the chances they promise."""

import math

import pytest
import torch

from ohem.samplers import ProportionalSampler, RankSampler, RoISampler
from tests.make_rois import make_rois

DRAWS = 4000


def _first_drawn(sampler: RoISampler, losses: list[float]) -> list[float]:
    """How often each RoI is the one drawn, over many seeds; `sampler` draws one."""
    rois, values = make_rois([0] * len(losses)), torch.tensor(losses)
    counts = torch.zeros(len(losses))
    torch.manual_seed(0)
    for _ in range(DRAWS):
        counts[sampler(rois, lambda: values)] += 1
    assert counts.sum() == DRAWS
    return (counts / DRAWS).tolist()


def test_the_chance_decays_exponentially_with_the_rank() -> None:
    """Pressure 16 over 4 RoIs: each rank has half the chance of the one before."""
    found = _first_drawn(RankSampler(1, pressure=16.0), [0.1, 3.0, 2.9, 1000.0])
    assert found == pytest.approx([1 / 15, 4 / 15, 2 / 15, 8 / 15], abs=0.03)


def test_without_pressure_all_have_the_same_chance() -> None:
    assert _first_drawn(RankSampler(1, pressure=1.0), [1.0, 2.0, 3.0, 4.0]) == pytest.approx([0.25] * 4, abs=0.03)


def test_the_chance_is_proportional_to_the_loss() -> None:
    found = _first_drawn(ProportionalSampler(1), [0.0, 1.0, 2.0, 5.0])
    assert found == pytest.approx([0.0, 1 / 8, 2 / 8, 5 / 8], abs=0.03)


@pytest.mark.parametrize("sampler", [RankSampler(2), ProportionalSampler(2)], ids=str)
def test_each_image_has_its_own_draw(sampler: RoISampler) -> None:
    """However hard the RoIs of the other image are."""
    rois = make_rois([0] * 6, images=[0, 0, 0, 1, 1, 1], num_images=2)
    chosen = sampler(rois, lambda: torch.tensor([1.0, 1.0, 1.0, 1e6, 1e6, 1e6]))
    assert rois.images[chosen].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("sampler", [RankSampler(3), ProportionalSampler(3)], ids=str)
def test_nan_is_told_and_drawn_last(sampler: RoISampler) -> None:
    rois = make_rois([0, 0, 0, 1])
    losses = torch.tensor([math.nan, 1.0, 0.5, 2.0])
    for seed in range(20):
        torch.manual_seed(seed)
        with pytest.warns(RuntimeWarning, match="1 of 4 RoI losses are NaN"):
            assert sorted(sampler(rois, lambda: losses).tolist()) == [1, 2, 3]
