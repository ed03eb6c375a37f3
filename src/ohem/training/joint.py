"""Selection over a whole mini-batch: over the sizes of an image, and over images that pass one by one.

Section 4.2 of the paper ranks all RoIs of all N images. Where the gradients are accumulated over passes of one image,
so that memory is that of one image, the RoIs are ranked before the first pass: one more forward pass of the
convolutional network, without gradient.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   V: network images, each an image in one size   N: images
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ohem.data.loader import Example
from ohem.detection.fast_rcnn import FastRCNN
from ohem.draws import seeds_of_images
from ohem.read_only import read_only
from ohem.rois import RoIs, background_rois, match
from ohem.samplers import Losses, RoISampler
from ohem.targets import read_targets


class PyramidSampler:
    """A sampler that lets another one choose among the RoIs of all sizes of an image, as if they were of one image.

    The other sampler gets the boxes in pixels of the original image, so that its NMS compares those of all sizes, and N
    images in place of V.

    Args:
        sampler: chooses.
    """

    def __init__(self, sampler: RoISampler) -> None:
        self.sampler = sampler
        self._images: list[int] = []
        self._scales: list[float] = []
        self._first: list[int] = []

    def begin(self, examples: Sequence[Example]) -> None:
        """Announces the V network images of the next call, the sizes of an image one after the other."""
        positions = [example.position for example in examples]
        distinct = list(dict.fromkeys(positions))
        self._images = [distinct.index(position) for position in positions]
        self._scales = [example.scale for example in examples]
        self._first = [positions.index(position) for position in distinct]

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        images, scales = rois.images.new_tensor(self._images), rois.boxes.new_tensor(self._scales)
        boxes = rois.boxes / scales[rois.images][:, None]
        of_images = replace(rois, boxes=boxes, images=images[rois.images], num_images=len(self._first))
        with seeds_of_images(self._first) as whole_batch:

            def compute(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
                with whole_batch():
                    return losses(cls_weight, box_weight)

            return self.sampler(of_images, compute)


@dataclass(frozen=True)
class Choice:
    """What was chosen in a mini-batch, before it is trained on."""

    keep: Sequence[Tensor]
    """For each of V network images (B,) int64, indices of its RoIs."""
    trained_on: int
    """Number of RoIs of the mini-batch that are trained on, with regions that always are."""


def choose(
    model: FastRCNN, images: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
) -> Choice:
    """Lets the sampler of `model` choose among all RoIs of V images, which pass one by one, without gradient.

    Args:
        model: in train mode.
        images, proposals, targets: as for `FastRCNN.forward`.
    """
    targets = read_targets(targets, len(images), num_classes=model.num_classes)
    rois = match(proposals, targets, mean=model.box_mean, std=model.box_std)
    counts = torch.bincount(rois.images, minlength=len(images)).tolist()

    def losses(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
        parts = []
        for i, here in enumerate(torch.split(torch.arange(len(rois), device=rois.boxes.device), counts)):
            alone = replace(rois[here], images=torch.zeros_like(rois.images[here]), num_images=1)
            with seeds_of_images([i]), read_only(model):
                features = model.feature_map([images[i]])
                parts.append(model.read_only_losses(features, alone, cls_weight, box_weight))
        return torch.cat(parts)

    chosen = model.sampler(rois, losses)
    always = background_rois(targets)
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    keep = [chosen[rois.images[chosen] == i] - starts[i] for i in range(len(images))]
    return Choice(keep, len(chosen) + (0 if always is None else len(always)))


@contextmanager
def replayed(model: FastRCNN, keep: Tensor) -> Iterator[None]:
    """Lets the forward passes of `model` in this context train on the RoIs `keep` (B,)."""
    sampler = model.sampler
    model.sampler = lambda rois, losses: keep
    try:
        yield
    finally:
        model.sampler = sampler
