"""Training examples as a function of (seed, position), so that a resumed run is exact.

Position p of a run is its p-th image: step x N + place in the mini-batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ohem.data.transforms import flip, flip_boxes, resize, scale_factor
from ohem.errors import InputError


class Stream(IntEnum):
    """Uses of the seed of a run, whose random numbers must be independent."""

    ORDER = 0
    FLIP = 1
    INITIAL = 2
    STEP = 3
    SCALE = 4


class DetectionData(Protocol):
    """A data set as loader and evaluation use it."""

    classes: tuple[str, ...]
    ids: list[str]

    def __len__(self) -> int: ...
    def path(self, index: int) -> Path: ...
    def image(self, index: int) -> Tensor: ...
    def target(self, index: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Example:
    """One training image."""

    id: str
    position: int
    image: Tensor
    """uint8 RGB (3, H, W), resized."""
    proposals: Tensor
    """(P, 4) float32, in pixels of the resized image."""
    target: dict[str, Tensor]
    """`boxes` (G, 4) in pixels of the resized image, `labels` (G,), `ignore` (G,), and `image_id`, its index in
    the data set; perhaps `background` (H, 4), regions that are always trained on."""
    scale: float
    """Resized pixels per pixel of the original image."""
    mirrored_width: int | None = None
    """Width of the original image in pixels if this one is mirrored, else None."""


@dataclass(frozen=True)
class ImagePyramid:
    """One image in one or several sizes, for a trained detector."""

    id: str
    images: tuple[Tensor, ...]
    """uint8 RGB (3, H, W) each, resized."""
    scales: tuple[float, ...]
    """Resized pixels per pixel of the original image, for each size."""
    proposals: Tensor
    """(P, 4) float32, in pixels of the original image."""
    size: tuple[int, int]
    """(height, width) of the original image."""


def seed_of(*numbers: int) -> int:
    """Returns a seed in [0, 2**63) that depends only on `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def prepare_example(
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
    """Resizes an image (3, H, W) with its proposals (P, 4) and ground truth, and mirrors it if `mirrored`."""
    height, width = image.shape[1:]
    boxes = _as_boxes(proposals)
    in_pixels: dict[str, Tensor] = {key: target[key] for key in ("boxes", "background") if key in target}
    rest = {key: target[key] for key in target if key not in ("boxes", "background", "area")}
    if mirrored:
        image, boxes = flip(image), flip_boxes(boxes, width)
        in_pixels = {key: flip_boxes(value, width) for key, value in in_pixels.items()}
    scale = scale_factor(height, width, short, long)
    target = {**rest, **{key: value * scale for key, value in in_pixels.items()}}
    return Example(name, position, resize(image, scale), boxes * scale, target, scale, width if mirrored else None)


def make_pyramid(name: str, image: Tensor, proposals: Any, *, shorts: Sequence[int], long: int) -> ImagePyramid:
    """Resizes an image (3, H, W) to each of the short sides `shorts`; its proposals (P, 4) stay in original pixels.

    Short sides that `long` limits to the same size count once.
    """
    height, width = image.shape[1:]
    scales = tuple(dict.fromkeys(scale_factor(height, width, short, long) for short in shorts))
    return ImagePyramid(name, tuple(resize(image, s) for s in scales), scales, _as_boxes(proposals), (height, width))


class Examples(Dataset[Example]):
    """Images with proposals, resized to one scale, in the order of the data set.

    Args:
        data: the images and their ground truth.
        proposals: image id -> (P, 4) boxes in pixels of the original image.
        short, long: side lengths in pixels, as for `scale_factor`.
        top: highest number of proposals of an image.
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
        """Returns image `index`, mirrored or not; `short` replaces the short side."""
        name = self.data.ids[index]
        image, target, boxes = self.data.image(index), self.data.target(index), self.proposals[name][: self.top]
        sides = {"short": short or self.short, "long": self.long}
        target = {**target, "image_id": torch.tensor(index)}
        return prepare_example(name, image, boxes, target, position=position, mirrored=mirrored, **sides)


class TrainingExamples(Dataset[Example]):
    """The endless sequence of images of a run, indexed by position: a new order in each epoch, half of it mirrored.

    Args:
        examples: the images.
        seed: seed of the run.
        flips: whether to mirror half of the images.
        scales: short sides in pixels, one of which is drawn at random for each position; default: that of `examples`.
    """

    def __init__(self, examples: Examples, *, seed: int, flips: bool, scales: Sequence[int] = ()) -> None:
        self.examples = examples
        self.seed = seed
        self.flips = flips
        self.scales = scales or (examples.short,)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, position: int) -> Example:
        return self._example(position, self.scales[seed_of(self.seed, Stream.SCALE, position) % len(self.scales)])

    def in_all_sizes(self, position: int) -> Iterator[Example]:
        """Yields the image at `position` with each of `scales` as its short side."""
        return (self._example(position, short) for short in self.scales)

    def _example(self, position: int, short: int) -> Example:
        epoch, offset = divmod(position, len(self.examples))
        mirrored = self.flips and bool(seed_of(self.seed, Stream.FLIP, position) & 1)
        return self.examples.example(int(self._order(epoch)[offset]), position, mirrored, short)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Returns the order of the images in an epoch. The last two are kept: to draw one takes time for each image."""
        if epoch not in self._orders:
            drawn = np.random.default_rng(seed_of(self.seed, Stream.ORDER, epoch)).permutation(len(self.examples))
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: drawn}
        return self._orders[epoch]


class TrainingPyramids(Dataset[list[Example]]):
    """The same sequence, with each image in all sizes: the short sides `scales` of `sequence`."""

    def __init__(self, sequence: TrainingExamples) -> None:
        self.sequence = sequence

    def __getitem__(self, position: int) -> list[Example]:
        return list(self.sequence.in_all_sizes(position))


class ImagePyramids(Dataset[ImagePyramid]):
    """The images of `examples` in one or several sizes, for a trained detector.

    Args:
        examples: the images with their proposals.
        shorts: short sides in pixels.
        long: highest long side in pixels, as for `scale_factor`.
    """

    def __init__(self, examples: Examples, *, shorts: Sequence[int], long: int) -> None:
        self.examples, self.shorts, self.long = examples, shorts, long

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> ImagePyramid:
        data, name = self.examples.data, self.examples.data.ids[index]
        boxes = self.examples.proposals[name][: self.examples.top]
        return make_pyramid(name, data.image(index), boxes, shorts=self.shorts, long=self.long)


def positions(first_step: int, last_step: int, images: int, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
    """Yields the positions of process `rank` of `world` in the steps [first_step, last_step); `images` is over all."""
    return (list(range(step * images + rank, (step + 1) * images, world)) for step in range(first_step, last_step))


def collate_list(examples: Sequence[Example | list[Example]]) -> list[Example]:
    """Collates to a list, since images of a mini-batch have different sizes and numbers of boxes."""
    return [one for item in examples for one in (item if isinstance(item, list) else [item])]


def describe_data_error(error: Exception) -> Exception:
    """Returns an exception with a sentence for what the loader raised; a worker sends its traceback as the message."""
    said = str(error).strip().splitlines() or [""]
    if isinstance(error, InputError):
        return InputError(said[-1].removeprefix("ohem.errors.InputError: "))
    if isinstance(error, OSError):
        return error if error.errno is not None else InputError(f"an image cannot be read ({said[-1]}): restore it")
    if isinstance(error, MemoryError) or "DataLoader worker (pid" in said[0]:
        return InputError(
            f"there is not enough memory for the images ({said[-1] or 'MemoryError'}): lower --data.workers or "
            "--solver.images, or leave out the largest images"
        )
    return error


def _as_boxes(proposals: Any) -> Tensor:
    return torch.as_tensor(np.array(proposals, dtype=np.float32)).reshape(-1, 4)
