"""What every way of choosing RoIs has in common: one signature, with losses that are lazy.

A sampler that needs the losses calls `losses()`, which runs the read-only pass; others never pay for it.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   N: images
"""

import warnings
from typing import Protocol

import torch
from torch import Tensor

from ohem.checks import check_callable, check_number, describe, is_false
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


def check_weights(classifier: float, box_reg: float) -> None:
    """Raises `TypeError` or `ValueError` where the weights of the two losses are not numbers, or rank nothing."""
    check_number("classifier", classifier, 0)
    check_number("box_reg", box_reg, 0)
    if classifier == box_reg == 0:
        raise ValueError("classifier and box_reg must not both be 0: all losses would be equal")


def check_sampler(sampler: object) -> None:
    """Raises `TypeError` where `sampler` cannot be called with (rois, losses)."""
    check_callable("sampler", sampler, "a sampler is called with (rois, losses), give OHEMSampler()")


def check_chosen(chosen: object, rois: RoIs, sampler: object) -> Tensor:
    """Returns what `sampler` chose of `rois`.

    Raises:
        TypeError: it is not an int64 vector on the device of the RoIs.
        ValueError: an index is out of range, or there twice; values are checked on the CPU alone.
    """
    if not isinstance(chosen, Tensor) or chosen.dim() != 1 or chosen.dtype != torch.int64:
        raise TypeError(
            f"a sampler returns the indices of RoIs, an int64 vector, and {sampler} returned {describe(chosen)}"
        )
    if chosen.device != rois.labels.device:
        raise TypeError(
            f"a sampler returns indices on the device of the RoIs, {rois.labels.device}, and {sampler} returned them "
            f"on {chosen.device}: make them with device=rois.boxes.device"
        )
    if is_false((chosen >= 0) & (chosen < len(rois))):
        raise ValueError(
            f"a sampler returns indices from 0 to {len(rois) - 1}, and {sampler} returned one out of that range"
        )
    if is_false(torch.zeros_like(rois.labels).index_add(0, chosen, torch.ones_like(chosen)) <= 1):
        raise ValueError(f"a sampler returns every index at most once, and {sampler} returned one twice")
    return chosen
