"""`SAMPLERS`, the samplers with a name in recipes and on the command line, agrees with the recipes and the classes."""

import inspect
from dataclasses import asdict, fields
from typing import get_args

import pytest

from ohem.config.schema import SamplerConfig, SamplerName
from ohem.samplers import SAMPLERS, make_sampler

OPTIONS = {field.name for field in fields(SamplerConfig)} - {"name"}


def test_names_are_those_of_recipes() -> None:
    assert {*SAMPLERS, "builtin"} == set(get_args(SamplerName))


def test_every_option_of_recipes_belongs_to_a_sampler() -> None:
    assert {option for sampler in SAMPLERS.values() for option in sampler.options} == OPTIONS


@pytest.mark.parametrize("name", SAMPLERS)
def test_options_are_arguments_of_the_constructor(name: str) -> None:
    sampler = SAMPLERS[name]
    arguments = set(inspect.signature(sampler.make).parameters)
    if "options" in arguments:  # a preset passes these on to its class
        arguments |= set(inspect.signature(type(sampler.make())).parameters)
    assert set(sampler.options) <= arguments
    assert len(set(sampler.options)) == len(sampler.options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_defaults_are_those_of_the_constructor(name: str) -> None:
    assert make_sampler(name) == SAMPLERS[name].make()
    assert make_sampler(**asdict(SamplerConfig(name=name))) == SAMPLERS[name].make()  # type: ignore[arg-type]


def test_options_of_other_samplers_are_ignored() -> None:
    assert make_sampler("rank", batch_size=3, nms_iou=0.5, pressure=None) == SAMPLERS["rank"].make(3)
