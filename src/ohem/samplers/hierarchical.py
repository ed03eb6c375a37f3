"""Ranking by neighbourhoods: first the hardest of each, then the second hardest of each, and so on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ohem.checks import check_integer, check_share
from ohem.mining import exact, hard_examples, hard_rois
from ohem.rois import RoIs
from ohem.samplers.base import Losses, ask, by_image, check_weights, warn_of_nan

MOST_PAIRS = 2**22  # of boxes, whose IoU is in memory at once


@dataclass(frozen=True)
class HierarchicalSampler:
    """After the hierarchical local rank of PISA (Cao et al., 2020, section 4): NMS that postpones instead of dropping.

    A neighbourhood is a RoI that NMS keeps and those that it suppresses. RoIs are ranked within their neighbourhood by
    loss; of equal rank the harder one goes first.

    Args:
        batch_size: RoIs of each image.
        nms_iou: IoU above which a RoI is of the neighbourhood of a harder one.
        classifier, box_reg: weights of the two losses; PISA ranks by the score alone.
    """

    batch_size: int = 64
    nms_iou: float = 0.5
    classifier: float = 1.0
    box_reg: float = 0.0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_share("nms_iou", self.nms_iou)
        check_weights(self.classifier, self.box_reg)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        values = ask(losses, self.classifier, self.box_reg)
        warn_of_nan(values)
        return torch.cat([c[self._image(values[c], rois.boxes[c])] for c in by_image(rois)])

    def _image(self, losses: Tensor, boxes: Tensor) -> Tensor:
        """Positions of the chosen among the RoIs of an image."""
        order = hard_examples(losses, len(losses))
        place = self._neighbourhoods(losses, boxes)[order]
        # Sorted by neighbourhood, hardest first in each: the local rank is the distance from its beginning.
        grouped = place.argsort(stable=True)
        start = torch.searchsorted(place[grouped].contiguous(), place[grouped].contiguous())
        rank = torch.empty_like(place).scatter_(0, grouped, torch.arange(len(order), device=order.device) - start)
        return order[rank.argsort(stable=True)][: self.batch_size]

    def _neighbourhoods(self, losses: Tensor, boxes: Tensor) -> Tensor:
        """(R,) int64: which survivor of NMS each RoI belongs to, the hardest that it overlaps."""
        kept = hard_rois(losses, boxes, torch.zeros_like(losses, dtype=torch.int64), len(losses), self.nms_iou)
        if not len(kept):
            return kept
        survivors = exact(boxes[kept])
        parts = torch.split(exact(boxes), max(1, MOST_PAIRS // len(kept)))
        first = [(box_iou(survivors, part) > self.nms_iou).to(torch.uint8).argmax(dim=0) for part in parts]
        own = torch.arange(len(kept), device=kept.device)
        # Also where a box has no area, and overlaps not even itself.
        return torch.cat(first).to(kept.device).index_copy(0, kept, own)
