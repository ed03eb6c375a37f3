"""torchvision's RetinaNet: mining with focal loss (`loss="builtin"`) or in its place (`loss="cross_entropy"`).

If the user replaced `sigmoid_focal_loss` in torchvision's module, the replacement ranks and is trained.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import RetinaNet, _utils, retinanet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from torchvision.ops import focal_loss

from ohem.integrations.dense import Loss, MinedLoss, Outputs, check_unreduced, mine_in_head, scatter_foreground
from ohem.integrations.parts import check_function, check_globals, check_methods, is_original
from ohem.integrations.registry import with_ohem
from ohem.rois import BACKGROUND, RoIs
from ohem.samplers import OHEMSampler, RoISampler

BOX_LOSSES = {"ciou": "complete_box_iou_loss", "diou": "distance_box_iou_loss", "giou": "generalized_box_iou_loss"}
"""Names of the box losses in torchvision's `_utils`, where the user may have replaced them."""

# Anchors per image: as many as a region proposal network is trained on.
ANCHORS = 256


def classification_losses(loss: Loss, outputs: Outputs, rois: RoIs, focal: Callable[..., Any]) -> Tensor:
    """Computes the loss (R,) of a head with a sigmoid for each class, summed over the classes; 0 where the label is -1.

    `focal` is the current `sigmoid_focal_loss` of the model's module.
    """
    logits = outputs["cls_logits"].float()
    positions = rois.foreground.nonzero().squeeze(1)
    wanted = torch.zeros_like(logits)
    wanted[positions, rois.labels[positions] - 1] = 1
    if loss == "builtin":
        values = check_unreduced(focal(logits, wanted, reduction="none"), logits, "sigmoid_focal_loss")
    else:
        values = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return torch.where(rois.labels >= BACKGROUND, values.sum(dim=1), 0)


def check_focal(loss: Loss, focal: Callable[..., Any]) -> None:
    """Raises `TypeError` if the user replaced the focal loss, but `loss` is cross entropy, which would not use it."""
    if loss != "builtin" and not is_original(focal, focal_loss, "sigmoid_focal_loss"):
        raise TypeError(
            f'sigmoid_focal_loss was replaced, and loss="{loss}" would not use yours: give loss="builtin", or put '
            "torchvision's back"
        )


class MinedRetinaNetLoss(MinedLoss):
    """The loss of RetinaNet. "builtin" divides that of an image by its number of foreground anchors, and by N."""

    first_class = 0

    def __init__(self, sampler: RoISampler, loss: Loss, head: RetinaNetHead) -> None:
        super().__init__(sampler, loss)
        self.head = head

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        deltas = outputs["bbox_regression"][rois.foreground].float()
        boxes = self._box_losses(deltas, rois[rois.foreground], truth[rois.foreground])
        return {
            "classification": classification_losses(self.loss, outputs, rois, retinanet.sigmoid_focal_loss),
            "bbox_regression": scatter_foreground(rois, boxes),
        }

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self._coder.encode_single(truth, anchors)  # type: ignore[no-any-return]

    def divisor(self, rois: RoIs) -> Tensor:
        foreground = rois.images[rois.foreground].bincount(minlength=rois.num_images)
        return foreground.clamp(min=1) * rois.num_images

    @property
    def between_thresholds(self) -> int:
        return self.head.classification_head.BETWEEN_THRESHOLDS  # type: ignore[no-any-return]

    def _box_losses(self, deltas: Tensor, rois: RoIs, truth: Tensor) -> Tensor:
        """Computes the losses of the F foreground anchors, (F,), whose sum is torchvision's `_box_loss`."""
        kind = self.head.regression_head._loss_type
        if kind in ("l1", "smooth_l1"):
            loss = getattr(functional, f"{kind}_loss")
            return check_unreduced(loss(deltas, rois.targets, reduction="none"), deltas, f"{kind}_loss").sum(dim=1)
        if kind not in BOX_LOSSES:
            known = ", ".join(["l1", "smooth_l1", *BOX_LOSSES])
            raise ValueError(f"_loss_type of the regression head must be one of {known}, not {kind!r}")
        decoded = self._coder.decode_single(deltas, rois.boxes)
        losses = getattr(_utils, BOX_LOSSES[kind])(decoded, truth, reduction="none", eps=1e-7)
        return check_unreduced(losses, deltas[:, 0], BOX_LOSSES[kind])

    @property
    def _coder(self) -> BoxCoder:
        return self.head.regression_head.box_coder


def check_parts(model: RetinaNet, loss: Loss) -> None:
    """Raises `TypeError` if the model does not compute its losses as torchvision's does."""
    head = model.head
    check_methods(model, RetinaNet, retinanet, "compute_loss")
    check_methods(head, RetinaNetHead, retinanet, "compute_loss", mined=MinedLoss)
    check_methods(head.classification_head, RetinaNetClassificationHead, retinanet, "compute_loss")
    check_methods(head.regression_head, RetinaNetRegressionHead, retinanet, "compute_loss")
    check_function(retinanet, "_box_loss", _utils)
    check_globals(_utils, F=functional)
    check_focal(loss, retinanet.sigmoid_focal_loss)


@with_ohem.register(RetinaNet, default=lambda _: OHEMSampler(ANCHORS, nms_iou=None))
def _install(model: RetinaNet, sampler: RoISampler, loss: Loss = "builtin") -> None:
    mine_in_head(model, MinedRetinaNetLoss(sampler, loss, model.head), check_parts)
