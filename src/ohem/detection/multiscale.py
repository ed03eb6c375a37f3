"""One image in several sizes (the paper's M; Fast R-CNN, section 2.4; He et al., SPPnet, 2014, section 2.3).

A merge rule is a function: views of one image -> functions that score boxes, whose candidates compete with each other.
Boxes are in pixels of the original image, in which the views can be compared.

P: boxes
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ohem.detection.post_process import BoxScores, ScoreBoxes

# Best area of a RoI in pixels: the size that ImageNet networks were trained at.
AREA = 224.0**2


class View(NamedTuple):
    """One image in one size."""

    score_boxes: ScoreBoxes
    """Scores boxes by the RoI network; the convolutional features are computed already."""
    scale: float
    """Pixels of the resized image per pixel of the image."""


Merge = Callable[[Sequence[View]], list[ScoreBoxes]]


def union(views: Sequence[View]) -> list[ScoreBoxes]:
    """Scores every box in every view; all results compete in one NMS."""
    return [view.score_boxes for view in views]


def nearest(views: Sequence[View]) -> list[ScoreBoxes]:
    """Scores every box in one view, which `levels` chooses."""

    def score_boxes(boxes: Tensor) -> BoxScores:
        level = levels(boxes, [view.scale for view in views])
        rows = [(level == i).nonzero()[:, 0] for i in range(len(views))]
        scored = [view.score_boxes(boxes[mine]) for view, mine in zip(views, rows, strict=True)]
        order = torch.cat(rows).argsort()
        return BoxScores(*(torch.cat(column)[order] for column in zip(*scored, strict=True)))

    return [score_boxes]


def levels(boxes: Tensor, scales: Sequence[float], area: float = AREA) -> Tensor:
    """Returns for each box (P, 4) the index (P,) of the scale at which its area is nearest to `area`."""
    size = boxes[:, 2:] - boxes[:, :2]
    scaled = size.prod(dim=1)[:, None] * boxes.new_tensor(scales) ** 2
    return (scaled - area).abs().argmin(dim=1)
