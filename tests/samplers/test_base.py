"""Every sampler against the contract."""

from dataclasses import FrozenInstanceError

import pytest

from ohem.samplers import (
    AllSampler,
    HierarchicalSampler,
    IoUBalancedSampler,
    OHEMSampler,
    ProportionalSampler,
    RandomSampler,
    RankSampler,
    RoISampler,
)
from tests.contracts import check_sampler


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
        (OHEMSampler(8, fg_fraction=0.25), 8),
        (OHEMSampler(8, per_image=False, fg_fraction=0.5, nms_iou=None), 8),
        (RankSampler(), 64),
        (RankSampler(8, pressure=1.0), 8),
        (ProportionalSampler(8), 8),
        (IoUBalancedSampler(), 64),
        (IoUBalancedSampler(7, fg_fraction=0.5, bins=4), 7),
        (HierarchicalSampler(8, box_reg=1.0), 8),
        (HierarchicalSampler(64, nms_iou=0.9, box_reg=1.0), 64),
    ],
    ids=str,
)
def test_contract(sampler: RoISampler, most: int | None) -> None:
    check_sampler(sampler, most)


@pytest.mark.parametrize(
    "sampler", [AllSampler(), RandomSampler(), OHEMSampler(), RankSampler(), ProportionalSampler()], ids=str
)
def test_settings_cannot_change_under_way(sampler: RoISampler) -> None:
    with pytest.raises(FrozenInstanceError):
        sampler.batch_size = 1  # type: ignore[attr-defined]
