"""Detections from scores and box regressions (paper, section 5.1: NMS at 0.3), and box voting (the paper's B).

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

# NMS of all candidates of 100 000 windows takes 12 s before a network is trained: the best are tried first.
# They are so many that torchvision's `batched_nms` runs each class by itself, as it does for all of them.
FIRST = 2**15


class BoxScores(NamedTuple):
    """Outputs of the RoI network for boxes (P, 4) of one image."""

    scores: Tensor
    """(P, K + 1) probabilities."""
    deltas: Tensor
    """(P, K + 1, 4) box regressions, not normalised."""


ScoreBoxes = Callable[[Tensor], BoxScores]
"""A function that returns the outputs of the RoI network for boxes (P, 4) in pixels of the image."""


class Candidates(NamedTuple):
    """Boxes that compete to be detections of one image."""

    boxes: Tensor
    """(C, 4), regressed and clipped to the image, with area."""
    labels: Tensor
    """(C,) int64 in 1..K."""
    scores: Tensor
    """(C,), scores of the boxes before the regression."""
    sources: Tensor
    """(C, 4), boxes before the regression."""

    def at(self, index: Tensor) -> "Candidates":
        """Returns the candidates at `index`: int64 indices or a boolean mask."""
        return Candidates(*(column[index] for column in self))


def candidates_of_all_classes(outputs: BoxScores, boxes: Tensor, size: tuple[int, int]) -> Candidates:
    """Returns the candidates of all classes from `outputs` for `boxes` (P, 4) in an image of (height, width)."""
    regressed = clip(decode(boxes, outputs.deltas), size)
    # A score of NaN is not >= 0. NMS would rank it first.
    which, column = (_with_area(regressed) & (outputs.scores >= 0))[:, 1:].nonzero(as_tuple=True)
    labels = column + 1
    return Candidates(regressed[which, labels], labels, outputs.scores[which, labels], boxes[which])


def candidates_of_own_class(outputs: BoxScores, candidates: Candidates, size: tuple[int, int]) -> Candidates:
    """Returns the candidates from `outputs` for the boxes of `candidates`, each for its own class only."""
    boxes, labels = candidates.boxes, candidates.labels
    rows = torch.arange(len(labels), device=labels.device)
    scores, regressed = outputs.scores[rows, labels], clip(decode(boxes, outputs.deltas[rows, labels]), size)
    return Candidates(regressed, labels, scores, boxes).at(_with_area(regressed))


@dataclass(frozen=True)
class PostProcess:
    """NMS of each class over the regressed boxes.

    Args:
        score: lowest score of a detection.
        nms_iou: IoU of the NMS of each class.
        max_detections: highest number of detections of an image.
    """

    score: float = 0.001
    nms_iou: float = 0.3
    max_detections: int = 300

    def __post_init__(self) -> None:
        check_share("score", self.score)
        check_share("nms_iou", self.nms_iou)
        check_integer("max_detections", self.max_detections, 1)

    def __call__(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns the detections of one image, highest score first.

        Args:
            scores: (P, K + 1) probabilities.
            deltas: (P, K + 1, 4) box regressions, not normalised.
            boxes: (P, 4) proposals.
            size: (height, width) of the image in pixels.

        Returns:
            `boxes` (D, 4) float32, `labels` (D,) int64 in 1..K, `scores` (D,) float32.
        """
        return self.select(candidates_of_all_classes(BoxScores(scores, deltas), boxes, size))

    def select(self, candidates: Candidates) -> dict[str, Tensor]:
        """Returns the detections among `candidates`, as `__call__` does."""
        confident = candidates.at(candidates.scores >= self.score)
        size = max(FIRST, 4 * self.max_detections)
        while len(confident.scores) > size:
            # Whether NMS keeps a box depends on boxes of higher scores only. Equal scores stay together, in order.
            best = confident.at(confident.scores >= confident.scores.topk(size).values[-1])
            detections = self._nms(best)
            if len(detections["scores"]) == self.max_detections:
                return detections
            size *= 4
        return self._nms(confident)

    def _nms(self, candidates: Candidates) -> dict[str, Tensor]:
        boxes, labels, scores, _ = candidates
        keep = batched_nms(boxes, scores, labels, self.nms_iou)[: self.max_detections]
        return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}


def vote_boxes(
    boxes: Tensor,
    candidates: Tensor,
    scores: Tensor,
    iou: float = 0.5,
    *,
    at_least: bool = False,
    added: float = 0.0,
) -> Tensor:
    """Replaces each box by the mean of the boxes around it (Gidaris and Komodakis, MR-CNN, 2015; the paper's B).

    All boxes are of one image and one class. A box stays as it is if no vote has a weight. NaN does not vote.

    Args:
        boxes: (n, 4) boxes that NMS kept, with exclusive ends and area.
        candidates: (C, 4) boxes that vote.
        scores: (C,) their scores; a vote_boxes weighs max(0, score + added).
        iou: candidates vote for boxes with a higher IoU.
        at_least: whether an IoU of exactly `iou` is enough.
        added: added to the scores; MR-CNN has 1.5 for scores of SVMs.

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
    # A sum of shifts, not a matrix product: exact if all boxes are equal, and in full precision under autocast.
    shift = (ballots * (candidates - boxes[:, None])).sum(dim=1)
    total = ballots.sum(dim=1)
    return torch.where(total > 0, boxes + shift / total, boxes)


def _with_area(boxes: Tensor) -> Tensor:
    area: Tensor = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return area
