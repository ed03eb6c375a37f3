"""What all samplers have in common: one signature, and losses that are computed only if the sampler calls them.

A sampler that needs the losses calls `losses()`, which runs the read-only pass. Other samplers do not pay for it.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   N: images
"""

import warnings
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ohem.checks import check_callable, check_number, describe, is_false
from ohem.draws import Use, begin_image
from ohem.rois import IGNORE, RoIs


class Losses(Protocol):
    """The losses of all RoIs, computed when they are called."""

    def __call__(self, cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
        """Returns the weighted sum of the classification and the box regression loss, (R,) float32."""
        ...


class RoISampler(Protocol):
    """Chooses the RoIs of a mini-batch to train on."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        """Returns the indices of the RoIs to train on, (B,) int64. `losses()` runs the read-only pass: (R,) float32."""
        ...


def call_losses(losses: Losses, cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
    """Returns `losses` with these weights (R,). Weights of 1 are not passed on: a user's `losses` may not take any."""
    return losses() if cls_weight == box_weight == 1 else losses(cls_weight, box_weight)


def minable(rois: RoIs) -> Tensor:
    """Returns the indices of the RoIs that a sampler may choose: all except those with the label -1."""
    return (rois.labels != IGNORE).nonzero().squeeze(1)


def by_image(rois: RoIs) -> list[Tensor]:
    """Returns the same indices as `minable`, one tensor for each image."""
    # The host reads N numbers once. With a mask for each image, a GPU would wait N times.
    group = torch.where(rois.labels == IGNORE, rois.num_images, rois.images)
    counts = (group == torch.arange(rois.num_images + 1, device=group.device)[:, None]).sum(dim=1)
    return list(torch.split(group.argsort(stable=True), counts.tolist())[:-1])


def images_to_draw(rois: RoIs) -> Iterator[int]:
    """Yields the number of each image, after beginning its random numbers."""
    for image in range(rois.num_images):
        begin_image(image, Use.SAMPLER, rois.boxes.device)
        yield image


def warn_of_nan(losses: Tensor) -> None:
    """Warns if some of `losses` (R,) are NaN."""
    if losses.isnan().any():
        warnings.warn(
            f"{int(losses.isnan().sum())} of {len(losses)} RoI losses are NaN: they are mined last, "
            "but the network or its input is broken",
            RuntimeWarning,
            stacklevel=3,
        )


def check_weights(cls_weight: float, box_weight: float) -> None:
    """Raises `TypeError` or `ValueError` if a weight is not a number of at least 0, or if both are 0."""
    check_number("cls_weight", cls_weight, 0)
    check_number("box_weight", box_weight, 0)
    if cls_weight == box_weight == 0:
        raise ValueError("cls_weight and box_weight must not both be 0: all losses would be equal")


def check_sampler(sampler: object) -> None:
    """Raises `TypeError` if `sampler` cannot be called with (rois, losses)."""
    check_callable("sampler", sampler, "a sampler is called with (rois, losses), give OHEMSampler()")


def check_chosen(chosen: object, rois: RoIs, sampler: object) -> Tensor:
    """Returns `chosen`, the return value of `sampler` for `rois`, after checking it.

    Raises:
        TypeError: it is not an int64 vector on the device of the RoIs.
        ValueError: an index is out of range or occurs twice. Values are checked only on the CPU.
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
