"""An image looked at in several sizes (the paper's M; Fast R-CNN, section 2.4; He et al., SPPnet, 2014, section 2.3).

A merge rule is a function: views of one image -> the looks at it, whose candidates compete with each other. Boxes are
in pixels of the image as it was before it was resized, in which alone the views can be compared.

P: boxes
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ohem.detection.inference import Look, Outputs

# Pixels of a RoI in the picture that the network sees best: the size that ImageNet networks were trained at.
AREA = 224.0**2


class View(NamedTuple):
    """One image in one size."""

    look: Look
    """Asks the RoI network; the convolutional features are computed already."""
    scale: float
    """Pixels of the resized image per pixel of the image."""


Merge = Callable[[Sequence[View]], list[Look]]


def union(views: Sequence[View]) -> list[Look]:
    """Every box is looked at in every view, and all that comes of it competes in one NMS."""
    return [view.look for view in views]


def nearest(views: Sequence[View]) -> list[Look]:
    """Every box is looked at in one view, that of `levels`."""

    def look(boxes: Tensor) -> Outputs:
        level = levels(boxes, [view.scale for view in views])
        rows = [(level == i).nonzero()[:, 0] for i in range(len(views))]
        seen = [view.look(boxes[mine]) for view, mine in zip(views, rows, strict=True)]
        order = torch.cat(rows).argsort()
        return Outputs(*(torch.cat(column)[order] for column in zip(*seen, strict=True)))

    return [look]


def levels(boxes: Tensor, scales: Sequence[float], area: float = AREA) -> Tensor:
    """Of each box (P, 4) the index (P,) of the scale that brings its area nearest to `area`; the first of equals."""
    size = boxes[:, 2:] - boxes[:, :2]
    scaled = size.prod(dim=1)[:, None] * boxes.new_tensor(scales) ** 2
    return (scaled - area).abs().argmin(dim=1)
