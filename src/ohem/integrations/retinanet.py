"""torchvision's RetinaNet: mining with focal loss (`loss="own"`) or in its place (`loss="cross_entropy"`).

A `sigmoid_focal_loss` that a person puts in place of torchvision's, in torchvision's module, ranks and trains.
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

from ohem.integrations.dense import Loss, MinedLoss, Outputs, mined_loss, per_anchor, where_foreground
from ohem.integrations.parts import check_function, check_globals, check_methods, guard, is_original
from ohem.integrations.registry import with_ohem
from ohem.rois import BACKGROUND, RoIs
from ohem.samplers import OHEMSampler, RoISampler

OF_BOXES = {"ciou": "complete_box_iou_loss", "diou": "distance_box_iou_loss", "giou": "generalized_box_iou_loss"}
"""The names of the losses of boxes in torchvision's `_utils`, where they may have been replaced."""

# As many anchors of an image as a region proposal network is trained on.
ANCHORS = 256


def classification_losses(loss: Loss, outputs: Outputs, rois: RoIs, focal: Callable[..., Any]) -> Tensor:
    """(R,) of a head with a sigmoid for each class, added up over the classes; 0 where the label is -1.

    `focal` is the present `sigmoid_focal_loss` of the model's module.
    """
    logits = outputs["cls_logits"].float()
    places = rois.foreground.nonzero().squeeze(1)
    wanted = torch.zeros_like(logits)
    wanted[places, rois.labels[places] - 1] = 1
    if loss == "own":
        values = per_anchor(focal(logits, wanted, reduction="none"), logits, "sigmoid_focal_loss")
    else:
        values = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return torch.where(rois.labels >= BACKGROUND, values.sum(dim=1), 0)


def check_focal(loss: Loss, focal: Callable[..., Any]) -> None:
    """Raises `TypeError` where a person replaced the focal loss, and asks for cross entropy in its place."""
    if loss != "own" and not is_original(focal, focal_loss, "sigmoid_focal_loss"):
        raise TypeError(
            f'sigmoid_focal_loss was replaced, and loss="{loss}" would not use yours: give loss="own", or put '
            "torchvision's back"
        )


class MinedRetinaNetLoss(MinedLoss):
    """See `MinedLoss`. With "own", an image's losses are divided by its number of foreground anchors, and by N."""

    first_class = 0

    def __init__(self, sampler: RoISampler, loss: Loss, head: RetinaNetHead) -> None:
        super().__init__(sampler, loss)
        self.head = head

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        deltas = outputs["bbox_regression"][rois.foreground].float()
        boxes = self._box_losses(deltas, rois[rois.foreground], truth[rois.foreground])
        return {
            "classification": classification_losses(self.loss, outputs, rois, retinanet.sigmoid_focal_loss),
            "bbox_regression": where_foreground(rois, boxes),
        }

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self._coder.encode_single(truth, anchors)  # type: ignore[no-any-return]

    def divisor(self, rois: RoIs) -> Tensor:
        foreground = rois.images[rois.foreground].bincount(minlength=rois.num_images)
        return foreground.clamp(min=1) * rois.num_images

    @property
    def between(self) -> int:
        return self.head.classification_head.BETWEEN_THRESHOLDS  # type: ignore[no-any-return]

    def _box_losses(self, deltas: Tensor, rois: RoIs, truth: Tensor) -> Tensor:
        """(F,) of the F foreground anchors, as torchvision's `_box_loss` computes their sum."""
        kind = self.head.regression_head._loss_type
        if kind in ("l1", "smooth_l1"):
            loss = getattr(functional, f"{kind}_loss")
            return per_anchor(loss(deltas, rois.targets, reduction="none"), deltas, f"{kind}_loss").sum(dim=1)
        if kind not in OF_BOXES:
            known = ", ".join(["l1", "smooth_l1", *OF_BOXES])
            raise ValueError(f"_loss_type of the regression head must be one of {known}, not {kind!r}")
        decoded = self._coder.decode_single(deltas, rois.boxes)
        losses = getattr(_utils, OF_BOXES[kind])(decoded, truth, reduction="none", eps=1e-7)
        return per_anchor(losses, deltas[:, 0], OF_BOXES[kind])

    @property
    def _coder(self) -> BoxCoder:
        return self.head.regression_head.box_coder


def check_parts(model: RetinaNet, loss: Loss) -> None:
    """Raises `TypeError` where the model does not compute its losses as torchvision's does."""
    head = model.head
    check_methods(model, RetinaNet, retinanet, "compute_loss")
    check_methods(head, RetinaNetHead, retinanet, "compute_loss", mined=MinedLoss)
    check_methods(head.classification_head, RetinaNetClassificationHead, retinanet, "compute_loss")
    check_methods(head.regression_head, RetinaNetRegressionHead, retinanet, "compute_loss")
    check_function(retinanet, "_box_loss", _utils)
    check_globals(_utils, F=functional)
    check_focal(loss, retinanet.sigmoid_focal_loss)


def _check_step(model: RetinaNet) -> None:
    check_parts(model, mined_loss(model.head).loss)


def _num_classes(model: RetinaNet) -> int | None:
    return getattr(model.head.classification_head, "num_classes", None)


@with_ohem.register(RetinaNet, default=lambda _: OHEMSampler(ANCHORS, nms_iou=None))
def _install(model: RetinaNet, sampler: RoISampler, loss: Loss = "own") -> None:
    mined = MinedRetinaNetLoss(sampler, loss, model.head)
    check_parts(model, loss)
    model.head.compute_loss = mined
    guard(model, _check_step, 0, _num_classes)
