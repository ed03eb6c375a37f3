"""Iterative box regression with voting (paper, section 5.3: B; Gidaris and Komodakis, MR-CNN, 2015, section 5).

Shapes: P: proposals   C: candidates   D: detections
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ohem.boxes import clip
from ohem.checks import check_bool, check_choice, check_integer, check_number, check_optional, check_share
from ohem.detection.post_process import (
    Candidates,
    PostProcess,
    ScoreBoxes,
    candidates_of_all_classes,
    candidates_of_own_class,
    vote_boxes,
)


@dataclass(frozen=True)
class BoxRefinement:
    """Iterative box regression: boxes are scored and regressed several times, and then vote on the detections.

    All proposals are scored and regressed; this gives R1, with the scores of the proposals. Boxes of R1 with a high
    score are scored and regressed again, each for its own class; this gives R2, with the scores of the boxes of R1. NMS
    over the union gives the detections. Each becomes the weighted mean of the boxes of its class around it, and keeps
    its score. An image in several sizes is iterated in each size, and the union is over all of them.

    Args:
        iterations: number of iterations T; 1 is plain Fast R-CNN.
        rescore_score: lowest score of a box that is scored again. The paper says "high-scoring".
        first_nms_iou, first_top: IoU of an NMS of the proposals of a class before the first regression, and the highest
            number that it leaves; None for no limit. MR-CNN has 0.95 and 200.
        voting: whether boxes vote on the detections.
        vote_iou, vote_at_least, vote_added: `iou`, `at_least` and `added` of `vote_boxes`; MR-CNN has 0.5, True, 1.5.
        voters: "all": all boxes of the union vote; "scored": those with the score of a detection.
    """

    iterations: int = 2
    rescore_score: float = 0.05
    first_nms_iou: float | None = None
    first_top: int | None = None
    voting: bool = True
    vote_iou: float = 0.5
    vote_at_least: bool = False
    vote_added: float = 0.0
    voters: Literal["all", "scored"] = "all"

    def __post_init__(self) -> None:
        check_integer("iterations", self.iterations, 1)
        for name in ("rescore_score", "vote_iou"):
            check_share(name, getattr(self, name))
        check_optional(check_share, "first_nms_iou", self.first_nms_iou)
        check_optional(check_integer, "first_top", self.first_top, 1)
        for name in ("voting", "vote_at_least"):
            check_bool(name, getattr(self, name))
        check_number("vote_added", self.vote_added)
        check_choice("voters", self.voters, ("all", "scored"))

    def __call__(
        self, score_functions: Sequence[ScoreBoxes], proposals: Tensor, size: tuple[int, int], post_process: PostProcess
    ) -> dict[str, Tensor]:
        """Returns the detections of one image, as `post_process` does.

        Args:
            score_functions: functions that score boxes, one for each size of the image.
            proposals: (P, 4) boxes in pixels of the image.
            size: (height, width) of the image in pixels.
            post_process: threshold, NMS and number of detections.
        """
        rounds = [newest for score_boxes in score_functions for newest in self._rounds(score_boxes, proposals, size)]
        union = Candidates(*map(torch.cat, zip(*rounds, strict=True)))
        detections = post_process.select(union)
        if not self.voting:
            return detections
        voters = union if self.voters == "all" else union.at(union.scores >= post_process.score)
        return {**detections, "boxes": clip(self._vote(detections, voters), size)}

    def _rounds(self, score_boxes: ScoreBoxes, proposals: Tensor, size: tuple[int, int]) -> Iterator[Candidates]:
        """Yields R1, R2, ..."""
        newest = self._first(candidates_of_all_classes(score_boxes(proposals), proposals, size))
        yield newest
        for _ in range(self.iterations - 1):
            confident = newest.at(newest.scores >= self.rescore_score)
            newest = candidates_of_own_class(score_boxes(confident.boxes), confident, size)
            yield newest

    def _first(self, candidates: Candidates) -> Candidates:
        """Returns the candidates whose proposals the NMS before the first regression keeps."""
        if self.first_nms_iou is None and self.first_top is None:
            return candidates
        iou = 1.0 if self.first_nms_iou is None else self.first_nms_iou
        keep = batched_nms(candidates.sources, candidates.scores, candidates.labels, iou)
        labels = candidates.labels[keep]
        parts = [keep[labels == label][: self.first_top] for label in torch.unique(labels)]
        return candidates.at(torch.cat(parts)) if parts else candidates

    def _vote(self, detections: dict[str, Tensor], voters: Candidates) -> Tensor:
        boxes = detections["boxes"].clone()
        for label in torch.unique(detections["labels"]):
            of_label, votes = detections["labels"] == label, voters.labels == label
            boxes[of_label] = vote_boxes(
                boxes[of_label],
                voters.boxes[votes],
                voters.scores[votes],
                self.vote_iou,
                at_least=self.vote_at_least,
                added=self.vote_added,
            )
        return boxes
