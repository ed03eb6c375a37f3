"""Ranking by neighbourhoods: first the hardest RoI of each neighbourhood, then the second hardest, and so on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ohem.boxes import MOST_PAIRS, pairwise_iou
from ohem.checks import check_integer, check_share
from ohem.mining import exact, hard_examples, hard_rois
from ohem.rois import RoIs
from ohem.samplers.base import Losses, by_image, call_losses, check_weights, warn_of_nan


@dataclass(frozen=True)
class HierarchicalSampler:
    """The hierarchical local rank of PISA (Cao et al., 2020, section 4): NMS that postpones RoIs and drops none.

    A neighbourhood is a RoI that NMS keeps, together with the RoIs that it suppresses. RoIs are ranked by loss within
    their neighbourhood. Of RoIs with the same rank, the harder one comes first.

    Args:
        batch_size: number of RoIs per image.
        nms_iou: IoU above which a RoI belongs to the neighbourhood of a harder one.
        cls_weight, box_weight: weights of the two losses in the ranking. PISA ranks by the classification loss alone.
    """

    batch_size: int = 64
    nms_iou: float = 0.5
    cls_weight: float = 1.0
    box_weight: float = 0.0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_share("nms_iou", self.nms_iou)
        check_weights(self.cls_weight, self.box_weight)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = call_losses(losses, self.cls_weight, self.box_weight)
        warn_of_nan(values)
        return torch.cat(
            [candidates[self._choose(values[candidates], rois.boxes[candidates])] for candidates in by_image(rois)]
        )

    def _choose(self, losses: Tensor, boxes: Tensor) -> Tensor:
        """Returns the positions of the chosen among the RoIs of an image."""
        order = hard_examples(losses, len(losses))
        neighbourhood = self._neighbourhoods(losses, boxes)[order]
        # Sorted by neighbourhood, and in each the hardest first: the local rank is the distance from its beginning.
        grouped = neighbourhood.argsort(stable=True)
        in_groups = neighbourhood[grouped].contiguous()
        start = torch.searchsorted(in_groups, in_groups)
        distance = torch.arange(len(order), device=order.device) - start
        rank = torch.empty_like(neighbourhood).scatter_(0, grouped, distance)
        return order[rank.argsort(stable=True)][: self.batch_size]

    def _neighbourhoods(self, losses: Tensor, boxes: Tensor) -> Tensor:
        """Returns the neighbourhood of each RoI, (R,) int64: the number of the hardest survivor of NMS it overlaps."""
        kept = hard_rois(losses, boxes, torch.zeros_like(losses, dtype=torch.int64), len(losses), self.nms_iou)
        if not len(kept):
            return kept
        survivors = exact(boxes[kept])
        chunks = torch.split(exact(boxes), max(1, MOST_PAIRS // len(kept)))
        first = [(pairwise_iou(survivors, chunk) > self.nms_iou).to(torch.uint8).argmax(dim=0) for chunk in chunks]
        own = torch.arange(len(kept), device=kept.device)
        # A survivor belongs to itself, even if its box has no area and so no IoU with itself.
        return torch.cat(first).to(kept.device).index_copy(0, kept, own)
