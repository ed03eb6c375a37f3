"""Ranking by neighbourhoods, in mini-batches small enough to check by hand."""

import math
from functools import partial

import pytest
import torch

from ohem.losses import weighted
from ohem.samplers import HierarchicalSampler, OHEMSampler, hierarchical
from tests.helpers.make_rois import make_rois

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]
FARTHEST = [90.0, 90.0, 99.0, 99.0]


def test_hardest_per_neighbourhood_comes_before_second_hardest() -> None:
    rois = make_rois([0] * 6, boxes=[UNIT, UNIT, UNIT, FAR, FAR, FARTHEST])
    losses = torch.tensor([9.0, 8.0, 7.0, 1.0, 2.0, 3.0]), torch.zeros(6)
    assert HierarchicalSampler(6)(rois, partial(weighted, losses)).tolist() == [0, 5, 4, 1, 3, 2]
    assert HierarchicalSampler(2)(rois, partial(weighted, losses)).tolist() == [0, 5]


def test_survivors_of_nms_come_first() -> None:
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=rng) * 100
    rois = make_rois([0] * 300, boxes=torch.cat([corner, corner + 30], dim=1).tolist())
    losses = torch.rand(300, generator=rng), torch.zeros(300)
    kept = OHEMSampler(300, nms_iou=0.5)(rois, lambda: losses[0])
    chosen = HierarchicalSampler(300)(rois, partial(weighted, losses))
    assert torch.equal(chosen[: len(kept)], kept)
    assert sorted(chosen.tolist()) == list(range(300))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    corner = torch.rand(200, 2, generator=rng) * 60
    rois = make_rois([0] * 200, boxes=torch.cat([corner, corner + 30], dim=1).tolist())
    losses = partial(weighted, (torch.rand(200, generator=rng), torch.zeros(200)))
    whole = HierarchicalSampler(200)(rois, losses)
    monkeypatch.setattr(hierarchical, "MOST_PAIRS", 100)
    assert torch.equal(HierarchicalSampler(200)(rois, losses), whole)


def test_ranking_is_by_classification_loss_by_default() -> None:
    rois = make_rois([1, 1])
    losses = partial(weighted, (torch.tensor([2.0, 1.0]), torch.tensor([0.0, 5.0])))
    assert HierarchicalSampler(1)(rois, losses).tolist() == [0]
    assert HierarchicalSampler(1, box_weight=1.0)(rois, losses).tolist() == [1]


def test_nan_is_reported_and_chosen_last() -> None:
    rois = make_rois([0, 0, 0])
    losses = torch.tensor([math.nan, 1.0, 2.0]), torch.zeros(3)
    with pytest.warns(RuntimeWarning, match="NaN"):
        assert HierarchicalSampler(2)(rois, partial(weighted, losses)).tolist() == [2, 1]
