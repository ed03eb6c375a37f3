"""The regions of a box that MR-CNN pools (Gidaris and Komodakis, ICCV 2015, section 3), as the authors' code has them.

R: RoIs
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ohem.checks import check_choice, check_number, check_optional, check_sequence, check_type

HALVES = ("left", "right", "upper", "lower")


@dataclass(frozen=True)
class Region:
    """A region of a box: the box or a half of it, scaled around its centre, possibly without an inner rectangle.

    Args:
        outer: factor of the sides of the region; 1 keeps them.
        inner: factor of the sides of the rectangle that is left out, which makes the region a ring; 0 leaves out none.
        half: the half of the box that is scaled; None for the whole box.

    Raises:
        TypeError, ValueError: a value is not of its type or range; `inner` must not be above `outer`.
    """

    outer: float = 1.0
    inner: float = 0.0
    half: Literal["left", "right", "upper", "lower"] | None = None

    def __post_init__(self) -> None:
        check_number("outer", self.outer, low=0)
        check_number("inner", self.inner, low=0)
        check_optional(check_choice, "half", self.half, HALVES)
        if not 0 < self.outer >= self.inner:
            raise ValueError(f"outer must be above 0 and at least inner, not {self.outer} with inner {self.inner}")

    def rectangles(self, boxes: Tensor) -> Tensor:
        """Returns the rectangles of this region of `boxes` (R, 4): (R, 4), or (R, 8) with the inner one of a ring."""
        whole = self._half(boxes)
        outer = _scaled(whole, self.outer)
        return torch.cat([outer, _scaled(whole, self.inner)], dim=1) if self.inner else outer

    def _half(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        if self.half in ("left", "right"):
            middle = (x1 + x2) / 2
            x1, x2 = (x1, middle) if self.half == "left" else (middle, x2)
        elif self.half is not None:
            middle = (y1 + y2) / 2
            y1, y2 = (y1, middle) if self.half == "upper" else (middle, y2)
        return torch.stack([x1, y1, x2, y2], dim=1)


REGIONS: Mapping[str, Region] = {
    "original": Region(),
    "left": Region(half="left"),
    "right": Region(half="right"),
    "upper": Region(half="upper"),
    "lower": Region(half="lower"),
    "center": Region(0.5),
    "center_ring": Region(0.8, inner=0.3),
    "border": Region(1.0, inner=0.5),
    "wide_border": Region(1.5, inner=0.8),
    "context": Region(1.8, inner=1.0),
}
"""The ten regions of MR-CNN, its figure 3 (a) to (j)."""
BOX_SCALE = 1.3
FOREGROUND = Region(1.5)
"""The region of which MR-CNN pools the features of foreground (its section 4)."""


@dataclass(frozen=True)
class Regions:
    """The regions whose features a detector classifies, and the region from which it regresses boxes.

    The RoI network has a copy for each region, with weights of its own.

    Args:
        classified: regions whose features are concatenated for the classification.
        foreground: region of which the features of foreground are pooled, `FOREGROUND` in MR-CNN: those of a small
            network that learns from the boxes which cells have an object. None: there is no such network.
        regressed: region whose features are for the box regression alone; None regresses from those of `classified`.

    Raises:
        TypeError, ValueError: `classified` is empty, or a value is not a `Region`.
    """

    classified: tuple[Region, ...] = tuple(REGIONS.values())
    regressed: Region | None = Region(BOX_SCALE)
    foreground: Region | None = None

    def __post_init__(self) -> None:
        check_sequence("classified", self.classified, "regions, such as REGIONS.values()")
        for i, region in enumerate(self.classified):
            check_type(f"classified[{i}]", region, Region)
        check_optional(check_type, "regressed", self.regressed, Region)
        check_optional(check_type, "foreground", self.foreground, Region)
        if not self.classified:
            raise ValueError("classified must have at least one region")

    @property
    def all(self) -> tuple[Region, ...]:
        """The regions in the order of the features, those of `classified` first."""
        return (*self.classified, *(region for region in (self.foreground, self.regressed) if region is not None))


def _scaled(boxes: Tensor, factor: float) -> Tensor:
    if factor == 1:  # exactly: rounding could change the cells of the feature map
        return boxes
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    return torch.cat([center - half, center + half], dim=1)
