"""Random numbers of each image of a mini-batch.

What is drawn for an image depends on a seed of its own, not on the images before it: several processes
that share a mini-batch draw what one process draws.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum

import torch

_seeds: ContextVar[Sequence[int] | None] = ContextVar("seeds", default=None)


class Use(IntEnum):
    """What the numbers are drawn for."""

    SAMPLER = 0
    READ_ONLY_PASS = 1
    TRAINING_PASS = 2


@contextmanager
def seeded_images(seeds: Sequence[int]) -> Iterator[None]:
    """Gives each image of the mini-batch, in order, a seed of its own in this context."""
    token = _seeds.set(seeds)
    try:
        yield
    finally:
        _seeds.reset(token)


def is_seeded() -> bool:
    """Returns whether the images have seeds."""
    return _seeds.get() is not None


def begin_image(image: int, use: Use, device: torch.device) -> None:
    """Makes the next random numbers on `device` those of an image, by its place in the mini-batch, if it has a seed."""
    seeds = _seeds.get()
    if seeds is not None:
        seed((seeds[image] + use) % 2**63, device)


def seed(number: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of `device`.

    `torch.manual_seed` takes milliseconds where PyTorch could use a GPU and does not.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)
