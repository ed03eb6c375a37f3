"""Every sampler satisfies the contract of `tests.helpers.contracts.check_sampler`."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import ohem.samplers
from ohem.samplers import SAMPLERS, OHEMSampler, RandomSampler, RoISampler
from tests.helpers.contracts import EVERY_SAMPLER, check_sampler

EDGE_CASES: dict[str, RoISampler] = {
    "one_roi": OHEMSampler(1),
    "only_foreground": RandomSampler(16, fg_fraction=1.0, fg_iou=0.6),
}
"""Samplers that a detector may not be able to train with: they may choose no foreground, or nothing but foreground."""
CASES = {**EVERY_SAMPLER, **EDGE_CASES}


def sampler_classes() -> set[type]:
    """Returns the classes that `ohem.samplers` exports and that are samplers: all with a call, except protocols."""
    exported = [getattr(ohem.samplers, name) for name in ohem.samplers.__all__]
    return {
        value
        for value in exported
        if isinstance(value, type) and "__call__" in vars(value) and not getattr(value, "_is_protocol", False)
    }


def test_every_exported_sampler_is_checked() -> None:
    assert len(sampler_classes()) == 9
    assert sampler_classes() == {type(sampler) for sampler in EVERY_SAMPLER.values()}


def test_every_named_sampler_is_checked() -> None:
    for name, sampler in SAMPLERS.items():
        assert type(EVERY_SAMPLER[name]) is type(sampler.make()), name


@pytest.mark.parametrize("sampler", CASES.values(), ids=CASES)
def test_contract(sampler: RoISampler) -> None:
    check_sampler(sampler, getattr(sampler, "batch_size", None))


@pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
def test_settings_cannot_be_changed(sampler: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        sampler.batch_size = 1
