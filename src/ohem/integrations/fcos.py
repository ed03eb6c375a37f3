"""torchvision's FCOS: mining with focal loss (`loss="own"`) or in its place (`loss="cross_entropy"`).

An anchor is a point of the feature map; its box is the square of one stride around it. Losses that a person puts in
place of torchvision's `sigmoid_focal_loss` and `generalized_box_iou_loss`, in torchvision's module, rank and train.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, fcos
from torchvision.models.detection.fcos import FCOSHead

from ohem.integrations.dense import Loss, MinedLoss, Outputs, mined_loss, per_anchor, where_foreground
from ohem.integrations.parts import check_globals, check_methods, guard
from ohem.integrations.registry import with_ohem
from ohem.integrations.retinanet import ANCHORS, check_focal, classification_losses
from ohem.rois import RoIs
from ohem.samplers import OHEMSampler, RoISampler


class MinedFCOSLoss(MinedLoss):
    """See `MinedLoss`. With "own", the losses are divided by the number of foreground anchors of the mini-batch."""

    first_class = 0

    def __init__(self, sampler: RoISampler, loss: Loss, head: FCOSHead) -> None:
        super().__init__(sampler, loss)
        self.head = head

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        foreground = rois.foreground
        boxes = self.head.box_coder.decode(outputs["bbox_regression"][foreground].float(), rois.boxes[foreground])
        ious = fcos.generalized_box_iou_loss(boxes, truth[foreground], reduction="none")
        centred = outputs["bbox_ctrness"][foreground, 0].float()
        wanted = _centredness(rois.targets[foreground])
        losses = {
            "bbox_regression": per_anchor(ious, boxes[:, 0], "generalized_box_iou_loss"),
            "bbox_ctrness": functional.binary_cross_entropy_with_logits(centred, wanted, reduction="none"),
        }
        found = {name: where_foreground(rois, values) for name, values in losses.items()}
        classification = classification_losses(self.loss, outputs, rois, fcos.sigmoid_focal_loss)
        return {"classification": classification, **found}

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.head.box_coder.encode(anchors, truth)  # type: ignore[no-any-return]


def _centredness(targets: Tensor) -> Tensor:
    """How central a point is in its object, 0 to 1, (F,): from its distances (F, 4) to the four sides."""
    across, along = targets[:, 0::2], targets[:, 1::2]
    ratios = [side.amin(dim=1) / side.amax(dim=1) for side in (across, along)]
    return torch.sqrt(ratios[0] * ratios[1])


def check_parts(model: FCOS, loss: Loss) -> None:
    """Raises `TypeError` where the model does not compute its losses as torchvision's does."""
    check_methods(model, FCOS, fcos, "compute_loss")
    check_methods(model.head, FCOSHead, fcos, "compute_loss", mined=MinedLoss)
    check_globals(fcos, nn=nn)
    check_focal(loss, fcos.sigmoid_focal_loss)


def _check_step(model: FCOS) -> None:
    check_parts(model, mined_loss(model.head).loss)


def _num_classes(model: FCOS) -> int | None:
    return getattr(model.head.classification_head, "num_classes", None)


@with_ohem.register(FCOS, default=lambda _: OHEMSampler(ANCHORS, nms_iou=None))
def _install(model: FCOS, sampler: RoISampler, loss: Loss = "own") -> None:
    mined = MinedFCOSLoss(sampler, loss, model.head)
    check_parts(model, loss)
    model.head.compute_loss = mined
    guard(model, _check_step, 0, _num_classes)
