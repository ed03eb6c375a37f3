"""torchvision's RetinaNet: mining with focal loss (`loss="own"`) or in its place (`loss="cross_entropy"`)."""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from ohem.integrations.dense import Loss, MinedLoss, Outputs, check_own_loss, where_foreground
from ohem.integrations.registry import with_ohem
from ohem.rois import BACKGROUND, RoIs
from ohem.samplers import OHEMSampler, RoISampler

_OF_DELTAS = {"l1": functional.l1_loss, "smooth_l1": functional.smooth_l1_loss}
_OF_BOXES = {"ciou": complete_box_iou_loss, "diou": distance_box_iou_loss, "giou": generalized_box_iou_loss}

# As many anchors of an image as a region proposal network is trained on.
ANCHORS = 256


def classification_losses(loss: Loss, outputs: Outputs, rois: RoIs) -> Tensor:
    """(R,) of a head with a sigmoid for each class, added up over the classes; 0 where the label is -1."""
    logits = outputs["cls_logits"].float()
    places = rois.foreground.nonzero().squeeze(1)
    wanted = torch.zeros_like(logits)
    wanted[places, rois.labels[places] - 1] = 1
    if loss == "own":
        values = sigmoid_focal_loss(logits, wanted, reduction="none")
    else:
        values = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return torch.where(rois.labels >= BACKGROUND, values.sum(dim=1), 0)


class MinedRetinaNetLoss(MinedLoss):
    """See `MinedLoss`. With "own", an image's losses are divided by its number of foreground anchors, and by N."""

    first_class = 0

    def __init__(self, sampler: RoISampler, loss: Loss, regression_head: RetinaNetRegressionHead) -> None:
        super().__init__(sampler, loss)
        self.regression_head = regression_head

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        kind, foreground = self.regression_head._loss_type, rois.foreground
        deltas = outputs["bbox_regression"][foreground].float()
        if kind in _OF_DELTAS:
            boxes = _OF_DELTAS[kind](deltas, rois.targets[foreground], reduction="none").sum(dim=1)
        else:
            decoded = self._coder.decode_single(deltas, rois.boxes[foreground])
            boxes = _OF_BOXES[kind](decoded, truth[foreground], reduction="none")
        return {
            "classification": classification_losses(self.loss, outputs, rois),
            "bbox_regression": where_foreground(rois, boxes),
        }

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self._coder.encode_single(truth, anchors)  # type: ignore[no-any-return]

    def divisor(self, rois: RoIs) -> Tensor:
        foreground = rois.images[rois.foreground].bincount(minlength=rois.num_images)
        return foreground.clamp(min=1) * rois.num_images

    @property
    def _coder(self) -> BoxCoder:
        return self.regression_head.box_coder


@with_ohem.register(RetinaNet, default=lambda _: OHEMSampler(ANCHORS, nms_iou=None))
def _install(model: RetinaNet, sampler: RoISampler, loss: Loss = "own") -> None:
    head = model.head
    check_own_loss((model, RetinaNet), (head, RetinaNetHead))
    check_own_loss(
        (head.classification_head, RetinaNetClassificationHead), (head.regression_head, RetinaNetRegressionHead)
    )
    head.compute_loss = MinedRetinaNetLoss(sampler, loss, head.regression_head)
