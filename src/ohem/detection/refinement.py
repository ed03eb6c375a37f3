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
from ohem.detection.inference import Candidates, Look, PostProcess, every_class, own_class, vote


@dataclass(frozen=True)
class BoxRefinement:
    """Boxes are scored and relocated again and again; detections are chosen among all of them, and all vote on them.

    All proposals are scored and relocated: R1, with the scores of the proposals. Those of R1 that score high are scored
    and relocated again, each for its own class: R2, with the scores of R1's boxes. NMS over the union of both gives the
    detections, and each becomes the weighted mean of the boxes of its class around it; its score stays. An image in
    several sizes is iterated on in each, and the union is over all.

    Args:
        iterations: T; 1 is plain Fast R-CNN.
        rescore_score: lowest score of a box that is looked at again. The paper says "high-scoring".
        first_nms_iou, first_top: NMS of the proposals of a class before the first relocation, and the most of a class
            that it leaves; None for none. MR-CNN has 0.95 and 200.
        voting: vote on the detections.
        vote_iou, vote_at_least, vote_added: `iou`, `at_least` and `added` of `vote`. MR-CNN has at least 0.5, and 1.5.
        voters: "all" boxes of the union, or those "scored" high enough to be detections.
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
        self, looks: Sequence[Look], proposals: Tensor, size: tuple[int, int], post_process: PostProcess
    ) -> dict[str, Tensor]:
        """Detections of one image, as `post_process` returns them.

        Args:
            looks: each asks the RoI network about boxes; one for each size that is iterated on for itself.
            proposals: (P, 4) boxes in pixels of the image.
            size: (height, width) of the image in pixels.
            post_process: threshold, NMS and number of detections.
        """
        rounds = [newest for look in looks for newest in self._rounds(look, proposals, size)]
        union = Candidates(*map(torch.cat, zip(*rounds, strict=True)))
        found = post_process.select(union)
        if not self.voting:
            return found
        voters = union if self.voters == "all" else union.at(union.scores >= post_process.score)
        return {**found, "boxes": clip(self._vote(found, voters), size)}

    def _rounds(self, look: Look, proposals: Tensor, size: tuple[int, int]) -> Iterator[Candidates]:
        """R1, R2, ..."""
        newest = self._first(every_class(look(proposals), proposals, size))
        yield newest
        for _ in range(self.iterations - 1):
            high = newest.at(newest.scores >= self.rescore_score)
            newest = own_class(look(high.boxes), high, size)
            yield newest

    def _first(self, candidates: Candidates) -> Candidates:
        """The candidates whose proposals are left by the NMS before the first relocation."""
        if self.first_nms_iou is None and self.first_top is None:
            return candidates
        iou = 1.0 if self.first_nms_iou is None else self.first_nms_iou
        keep = batched_nms(candidates.sources, candidates.scores, candidates.labels, iou)
        labels = candidates.labels[keep]
        parts = [keep[labels == label][: self.first_top] for label in torch.unique(labels)]
        return candidates.at(torch.cat(parts)) if parts else candidates

    def _vote(self, found: dict[str, Tensor], voters: Candidates) -> Tensor:
        boxes = found["boxes"].clone()
        for label in torch.unique(found["labels"]):
            mine, theirs = found["labels"] == label, voters.labels == label
            boxes[mine] = vote(
                boxes[mine],
                voters.boxes[theirs],
                voters.scores[theirs],
                self.vote_iou,
                at_least=self.vote_at_least,
                added=self.vote_added,
            )
        return boxes
