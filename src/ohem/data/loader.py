"""What is trained on at a step, as a function of (seed, position) and nothing else: resumption is exact for free.

Position p of a run is the p-th image it is shown: step x N + slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ohem.data.transforms import flip, flip_boxes, resize, scale_factor


class Stream(IntEnum):
    """What the seed of a run is drawn for: their random numbers must not meet."""

    ORDER = 0
    FLIP = 1
    INITIAL = 2
    STEP = 3
    SCALE = 4


class DetectionData(Protocol):
    """A data set as the loader and the evaluation need it."""

    classes: tuple[str, ...]
    ids: list[str]

    def __len__(self) -> int: ...
    def path(self, index: int) -> Path: ...
    def image(self, index: int) -> Tensor: ...
    def target(self, index: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Example:
    """One image as the network sees it."""

    id: str
    position: int
    image: Tensor
    """uint8 RGB (3, H, W), resized."""
    proposals: Tensor
    """(P, 4) float32, pixels of the resized image."""
    target: dict[str, Tensor]
    """`boxes` (G, 4) in pixels of the resized image, `labels` (G,), `ignore` (G,)."""
    scale: float
    """Resized pixels per pixel of the original."""


@dataclass(frozen=True)
class Picture:
    """One image as a trained detector looks at it: in one or several sizes."""

    id: str
    images: tuple[Tensor, ...]
    """uint8 RGB (3, H, W) each, resized."""
    scales: tuple[float, ...]
    """Resized pixels per pixel of the original, of each."""
    proposals: Tensor
    """(P, 4) float32, pixels of the original."""
    size: tuple[int, int]
    """(height, width) of the original."""


def seed_of(*numbers: int) -> int:
    """A seed in [0, 2**63) that depends on all of `numbers` and on nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def prepare(
    name: str,
    image: Tensor,
    proposals: Any,
    target: dict[str, Tensor],
    *,
    short: int,
    long: int,
    position: int = 0,
    mirrored: bool = False,
) -> Example:
    """Resizes, and mirrors if asked, an image (3, H, W) with its proposals (P, 4) and ground truth."""
    height, width = image.shape[1:]
    boxes = _as_boxes(proposals)
    truth, rest = target["boxes"], {key: target[key] for key in target if key not in ("boxes", "area")}
    if mirrored:
        image, boxes, truth = flip(image), flip_boxes(boxes, width), flip_boxes(truth, width)
    scale = scale_factor(height, width, short, long)
    return Example(name, position, resize(image, scale), boxes * scale, {**rest, "boxes": truth * scale}, scale)


def picture(name: str, image: Tensor, proposals: Any, *, shorts: Sequence[int], long: int) -> Picture:
    """An image (3, H, W) with its proposals (P, 4) in pixels of it, resized to each of the short sides `shorts`.

    Short sides that `long` limits to the same size are one.
    """
    height, width = image.shape[1:]
    scales = tuple(dict.fromkeys(scale_factor(height, width, short, long) for short in shorts))
    return Picture(name, tuple(resize(image, s) for s in scales), scales, _as_boxes(proposals), (height, width))


class Examples(Dataset[Example]):
    """Images with proposals, resized to one scale, indexed in order.

    Args:
        data: the images and their ground truth.
        proposals: image id -> (P, 4) boxes in pixels of the original image.
        short, long: side lengths in pixels, as for `scale_factor`.
        top: most proposals used of an image.
    """

    def __init__(self, data: DetectionData, proposals: Mapping[str, Any], *, short: int, long: int, top: int) -> None:
        self.data = data
        self.proposals = proposals
        self.short = short
        self.long = long
        self.top = top

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        return self.example(index, index, mirrored=False)

    def example(self, index: int, position: int, mirrored: bool, short: int | None = None) -> Example:
        """Image `index`, mirrored or not, its short side `short` or that of all."""
        name = self.data.ids[index]
        image, target, boxes = self.data.image(index), self.data.target(index), self.proposals[name][: self.top]
        sides = {"short": short or self.short, "long": self.long}
        return prepare(name, image, boxes, target, position=position, mirrored=mirrored, **sides)


class TrainingExamples(Dataset[Example]):
    """The endless sequence of a training run, indexed by position: a new order each epoch, half of it mirrored.

    Args:
        examples: the images.
        seed: of the run.
        flips: mirror half of the images.
        scales: short sides in pixels, one of which is drawn for each position; that of `examples` if none is given.
    """

    def __init__(self, examples: Examples, *, seed: int, flips: bool, scales: Sequence[int] = ()) -> None:
        self.examples = examples
        self.seed = seed
        self.flips = flips
        self.scales = scales or (examples.short,)

    def __getitem__(self, position: int) -> Example:
        epoch, offset = divmod(position, len(self.examples))
        order = np.random.default_rng(seed_of(self.seed, Stream.ORDER, epoch)).permutation(len(self.examples))
        mirrored = self.flips and bool(seed_of(self.seed, Stream.FLIP, position) & 1)
        short = self.scales[seed_of(self.seed, Stream.SCALE, position) % len(self.scales)]
        return self.examples.example(int(order[offset]), position, mirrored, short)


class Pictures(Dataset[Picture]):
    """Images with proposals for a trained detector, in one or several sizes each, indexed in order.

    Args:
        data: the images.
        proposals: image id -> (P, 4) boxes in pixels of the original image.
        shorts: short sides in pixels.
        long: highest long side in pixels, as for `scale_factor`.
        top: most proposals used of an image.
    """

    def __init__(
        self, data: DetectionData, proposals: Mapping[str, Any], *, shorts: Sequence[int], long: int, top: int
    ) -> None:
        self.data = data
        self.proposals = proposals
        self.shorts = shorts
        self.long = long
        self.top = top

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Picture:
        name = self.data.ids[index]
        boxes = self.proposals[name][: self.top]
        return picture(name, self.data.image(index), boxes, shorts=self.shorts, long=self.long)


def positions(first_step: int, last_step: int, images: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Positions that process `rank` of `world` is shown at each step of [first_step, last_step), `images` over all."""
    return [list(range(step * images + rank, (step + 1) * images, world)) for step in range(first_step, last_step)]


def as_list(examples: Sequence[Example]) -> list[Example]:
    """Collates to a plain list: images of a mini-batch have different sizes and numbers of boxes."""
    return list(examples)


def _as_boxes(proposals: Any) -> Tensor:
    return torch.as_tensor(np.array(proposals, dtype=np.float32)).reshape(-1, 4)
