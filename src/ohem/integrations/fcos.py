"""torchvision's FCOS: mining with focal loss (`loss="builtin"`) or in its place (`loss="cross_entropy"`).

An anchor is a point of the feature map. Its box is the square around it with a side of one stride. If the user replaced
`sigmoid_focal_loss` or `generalized_box_iou_loss` in torchvision's module, the replacement ranks and is trained.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, fcos
from torchvision.models.detection.fcos import FCOSHead

from ohem.integrations.dense import Loss, MinedLoss, Outputs, check_unreduced, mine_in_head, scatter_foreground
from ohem.integrations.parts import check_globals, check_methods
from ohem.integrations.registry import with_ohem
from ohem.integrations.retinanet import ANCHORS, check_focal, classification_losses
from ohem.rois import RoIs
from ohem.samplers import OHEMSampler, RoISampler


class MinedFCOSLoss(MinedLoss):
    """The loss of FCOS. "builtin" divides it by the number of foreground anchors of the mini-batch."""

    first_class = 0

    def __init__(self, sampler: RoISampler, loss: Loss, head: FCOSHead) -> None:
        super().__init__(sampler, loss)
        self.head = head

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        foreground = rois.foreground
        boxes = self.head.box_coder.decode(outputs["bbox_regression"][foreground].float(), rois.boxes[foreground])
        ious = fcos.generalized_box_iou_loss(boxes, truth[foreground], reduction="none")
        centredness = outputs["bbox_ctrness"][foreground, 0].float()
        wanted = _centredness(rois.targets[foreground])
        of_foreground = {
            "bbox_regression": check_unreduced(ious, boxes[:, 0], "generalized_box_iou_loss"),
            "bbox_ctrness": functional.binary_cross_entropy_with_logits(centredness, wanted, reduction="none"),
        }
        losses = {name: scatter_foreground(rois, values) for name, values in of_foreground.items()}
        classification = classification_losses(self.loss, outputs, rois, fcos.sigmoid_focal_loss)
        return {"classification": classification, **losses}

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.head.box_coder.encode(anchors, truth)  # type: ignore[no-any-return]


def _centredness(targets: Tensor) -> Tensor:
    """Returns how central a point is in its object, 0 to 1, (F,), from its distances (F, 4) to the four sides."""
    horizontal, vertical = targets[:, 0::2], targets[:, 1::2]
    ratios = [distances.amin(dim=1) / distances.amax(dim=1) for distances in (horizontal, vertical)]
    return torch.sqrt(ratios[0] * ratios[1])


def check_parts(model: FCOS, loss: Loss) -> None:
    """Raises `TypeError` if the model does not compute its losses as torchvision's does."""
    check_methods(model, FCOS, fcos, "compute_loss")
    check_methods(model.head, FCOSHead, fcos, "compute_loss", mined=MinedLoss)
    check_globals(fcos, nn=nn)
    check_focal(loss, fcos.sigmoid_focal_loss)


@with_ohem.register(FCOS, default=lambda _: OHEMSampler(ANCHORS, nms_iou=None))
def _install(model: FCOS, sampler: RoISampler, loss: Loss = "builtin") -> None:
    mine_in_head(model, MinedFCOSLoss(sampler, loss, model.head), check_parts)
