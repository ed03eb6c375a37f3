"""torchvision's FCOS: mining with focal loss (`loss="own"`) or in its place (`loss="cross_entropy"`).

An anchor is a point of the feature map; its box is the square of one stride around it.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import generalized_box_iou_loss

from ohem.integrations.dense import Loss, MinedLoss, Outputs, check_own_loss, where_foreground
from ohem.integrations.registry import with_ohem
from ohem.integrations.retinanet import ANCHORS, classification_losses
from ohem.rois import RoIs
from ohem.samplers import OHEMSampler, RoISampler


class MinedFCOSLoss(MinedLoss):
    """See `MinedLoss`. With "own", the losses are divided by the number of foreground anchors of the mini-batch."""

    first_class = 0

    def __init__(self, sampler: RoISampler, loss: Loss, box_coder: BoxLinearCoder) -> None:
        super().__init__(sampler, loss)
        self.box_coder = box_coder

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        foreground = rois.foreground
        boxes = self.box_coder.decode(outputs["bbox_regression"][foreground].float(), rois.boxes[foreground])
        centred = outputs["bbox_ctrness"][foreground, 0].float()
        wanted = _centredness(rois.targets[foreground])
        losses = {
            "bbox_regression": generalized_box_iou_loss(boxes, truth[foreground], reduction="none"),
            "bbox_ctrness": functional.binary_cross_entropy_with_logits(centred, wanted, reduction="none"),
        }
        found = {name: where_foreground(rois, values) for name, values in losses.items()}
        return {"classification": classification_losses(self.loss, outputs, rois), **found}

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.box_coder.encode(anchors, truth)  # type: ignore[no-any-return]


def _centredness(targets: Tensor) -> Tensor:
    """How central a point is in its object, 0 to 1, (F,): from its distances (F, 4) to the four sides."""
    across, along = targets[:, 0::2], targets[:, 1::2]
    ratios = [side.amin(dim=1) / side.amax(dim=1) for side in (across, along)]
    return torch.sqrt(ratios[0] * ratios[1])


@with_ohem.register(FCOS, default=lambda _: OHEMSampler(ANCHORS, nms_iou=None))
def _install(model: FCOS, sampler: RoISampler, loss: Loss = "own") -> None:
    check_own_loss((model, FCOS), (model.head, FCOSHead))
    model.head.compute_loss = MinedFCOSLoss(sampler, loss, model.head.box_coder)
