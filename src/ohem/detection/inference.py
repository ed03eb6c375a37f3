"""From scores and box regressions to detections (paper, section 5.1: NMS at 0.3), and box voting (its B).

Shapes: P: proposals   K: foreground classes   C: candidates   D: detections
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ohem.boxes import clip, decode
from ohem.checks import check_bool, check_integer, check_number, check_share, check_tensor


class Outputs(NamedTuple):
    """What the RoI network says about boxes (P, 4) of one image."""

    scores: Tensor
    """(P, K + 1) probabilities."""
    deltas: Tensor
    """(P, K + 1, 4) box regressions, not normalised."""


Look = Callable[[Tensor], Outputs]
"""Boxes (P, 4) in pixels of the image -> what the RoI network says about them."""


class Candidates(NamedTuple):
    """Boxes that compete to be detections of one image."""

    boxes: Tensor
    """(C, 4), relocated and clipped to the image; each has area."""
    labels: Tensor
    """(C,) int64 in 1..K."""
    scores: Tensor
    """(C,), of the boxes before they were relocated."""
    sources: Tensor
    """(C, 4), those boxes."""

    def at(self, index: Tensor) -> "Candidates":
        """Those at `index`: int64 indices or a boolean mask."""
        return Candidates(*(column[index] for column in self))


def every_class(outputs: Outputs, boxes: Tensor, size: tuple[int, int]) -> Candidates:
    """The candidates of all classes that come of looking at `boxes` (P, 4) in an image of `size` (height, width)."""
    regressed = clip(decode(boxes, outputs.deltas), size)
    # A score of NaN is not >= 0; NMS would rank it first.
    which, column = (_with_area(regressed) & (outputs.scores >= 0))[:, 1:].nonzero(as_tuple=True)
    labels = column + 1
    return Candidates(regressed[which, labels], labels, outputs.scores[which, labels], boxes[which])


def own_class(outputs: Outputs, candidates: Candidates, size: tuple[int, int]) -> Candidates:
    """The candidates that come of looking at the boxes of `candidates` again, each for its own class only."""
    boxes, labels = candidates.boxes, candidates.labels
    rows = torch.arange(len(labels), device=labels.device)
    scores, regressed = outputs.scores[rows, labels], clip(decode(boxes, outputs.deltas[rows, labels]), size)
    return Candidates(regressed, labels, scores, boxes).at(_with_area(regressed))


@dataclass(frozen=True)
class PostProcess:
    """Per-class NMS over the regressed boxes; the same settings serve every arm of a comparison.

    Args:
        score: detections below it are dropped.
        nms_iou: IoU of the per-class NMS.
        max_detections: highest number per image.
    """

    score: float = 0.001
    nms_iou: float = 0.3
    max_detections: int = 300

    def __post_init__(self) -> None:
        check_share("score", self.score)
        check_share("nms_iou", self.nms_iou)
        check_integer("max_detections", self.max_detections, 1)

    def __call__(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Detections of one image, highest score first.

        Args:
            scores: (P, K + 1) probabilities.
            deltas: (P, K + 1, 4) box regressions, not normalised.
            boxes: (P, 4) proposals.
            size: (height, width) of the image in pixels.

        Returns:
            `boxes` (D, 4) float32, `labels` (D,) int64 in 1..K, `scores` (D,) float32.
        """
        return self.select(every_class(Outputs(scores, deltas), boxes, size))

    def select(self, candidates: Candidates) -> dict[str, Tensor]:
        """Detections among `candidates`, as `__call__` returns them."""
        found = candidates.at(candidates.scores >= self.score)
        keep = batched_nms(found.boxes, found.scores, found.labels, self.nms_iou)[: self.max_detections]
        return {"boxes": found.boxes[keep], "labels": found.labels[keep], "scores": found.scores[keep]}


def vote(
    boxes: Tensor,
    candidates: Tensor,
    scores: Tensor,
    iou: float = 0.5,
    *,
    at_least: bool = False,
    added: float = 0.0,
) -> Tensor:
    """Box voting (Gidaris and Komodakis, MR-CNN, 2015; the paper's B): each box becomes the mean of those around it.

    All boxes are of one image and one class. A box without voters that weigh something stays as it is; what is NaN does
    not vote.

    Args:
        boxes: (n, 4) boxes that NMS kept, end exclusive, with area.
        candidates: (C, 4) boxes that vote, of the same kind.
        scores: (C,) their scores; a vote weighs max(0, score + added).
        iou: candidates vote for the boxes that they have a higher IoU with.
        at_least: an IoU of exactly `iou` is enough.
        added: MR-CNN has 1.5 for the scores of SVMs.

    Returns:
        (n, 4) boxes.
    """
    check_tensor("boxes", boxes, ("n", 4), "floating")
    check_tensor("candidates", candidates, ("C", 4), "floating")
    check_tensor("scores", scores, (len(candidates),), "floating")
    check_share("iou", iou)
    check_bool("at_least", at_least)
    check_number("added", added)
    weights = scores + added
    voters = (weights > 0) & candidates.isfinite().all(dim=1)
    candidates, weights = candidates[voters], weights[voters]
    ious = box_iou(boxes, candidates)
    ballots = torch.where(ious >= iou if at_least else ious > iou, weights, 0)[..., None]
    # As a shift, summed without a matrix product: exact if all agree, and in full precision under autocast.
    shift = (ballots * (candidates - boxes[:, None])).sum(dim=1)
    total = ballots.sum(dim=1)
    return torch.where(total > 0, boxes + shift / total, boxes)


def _with_area(boxes: Tensor) -> Tensor:
    area: Tensor = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return area
