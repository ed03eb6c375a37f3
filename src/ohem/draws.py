"""Random numbers of each image of a mini-batch.

What is drawn for an image depends on a seed of its own, not on the images before it: several processes
that share a mini-batch draw what one process draws.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import IntEnum

import torch

_seeds: ContextVar[Sequence[int] | None] = ContextVar("seeds", default=None)


class Use(IntEnum):
    """What the numbers are drawn for."""

    SAMPLER = 0
    READ_ONLY_PASS = 1
    TRAINING_PASS = 2
    ANCHORS = 3


@contextmanager
def seeded_images(seeds: Sequence[int] | None) -> Iterator[None]:
    """Gives each image of the mini-batch, in order, a seed of its own in this context; None gives none a seed."""
    token = _seeds.set(seeds)
    try:
        yield
    finally:
        _seeds.reset(token)


@contextmanager
def seeds_of_images(images: Sequence[int]) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Makes these `images` of the mini-batch, in this order, all images of it in this context, with their seeds.

    Yields:
        A function that returns a context in which the mini-batch is the whole one again.
    """
    seeds = _seeds.get()
    with seeded_images(None if seeds is None else [seeds[image] for image in images]):
        yield lambda: seeded_images(seeds)


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
