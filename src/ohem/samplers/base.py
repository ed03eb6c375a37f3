"""What every way of choosing RoIs has in common: one signature, with losses that are lazy.

A sampler that needs the losses calls `losses()`, which runs the read-only pass; others never pay for it.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   N: images
"""

import warnings
from typing import Protocol

import torch
from torch import Tensor

from ohem.rois import IGNORE, RoIs


class Losses(Protocol):
    """The losses of all RoIs, computed when they are asked for."""

    def __call__(self, classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
        """(R,) float32: the sum of classification and box-regression loss, with these weights."""
        ...


class RoISampler(Protocol):
    """Chooses the RoIs of a mini-batch to train on."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        """Indices (B,) int64 of the RoIs to train on. Calling `losses()` runs the read-only pass: (R,) float32."""
        ...


def ask(losses: Losses, classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
    """`losses` with these weights; without any where they are 1, since a caller's `losses` may know of none."""
    return losses() if classifier == box_reg == 1 else losses(classifier, box_reg)


def minable(rois: RoIs) -> Tensor:
    """Indices of the RoIs that may be chosen: all but the ignored ones."""
    return (rois.labels != IGNORE).nonzero().squeeze(1)


def by_image(rois: RoIs) -> list[Tensor]:
    """The same, image by image."""
    # One read of N numbers by the host, where a mask for each image would make a GPU wait N times.
    place = torch.where(rois.labels == IGNORE, rois.num_images, rois.images)
    counts = (place == torch.arange(rois.num_images + 1, device=place.device)[:, None]).sum(dim=1)
    return list(torch.split(place.argsort(stable=True), counts.tolist())[:-1])


def warn_of_nan(losses: Tensor) -> None:
    """Warns if some of `losses` (R,) are NaN: whatever is chosen then, something is broken."""
    if losses.isnan().any():
        warnings.warn(
            f"{int(losses.isnan().sum())} of {len(losses)} RoI losses are NaN: they are mined last, "
            "but the network or its input is broken",
            RuntimeWarning,
            stacklevel=3,
        )
