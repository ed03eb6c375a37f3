"""torchvision's SSD and SSDlite. The default is their own mining of hard background, 3 to 1, with correct counts.

torchvision's SSD mines by itself. If an image has fewer background anchors than three times its foreground anchors, it
counts foreground anchors twice. It does not train on an image without an object. `RatioSampler`, which replaces this
mining, counts each anchor once and trains on every image.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import ssd
from torchvision.models.detection.ssd import SSD

from ohem.integrations.dense import Loss, MinedLoss, Outputs, mined_loss, scatter_foreground
from ohem.integrations.parts import check_globals, check_methods, guard
from ohem.integrations.registry import with_ohem
from ohem.recorder import Recorder
from ohem.rois import RoIs
from ohem.samplers import RatioSampler, RoISampler


class MinedSSDLoss(MinedLoss):
    """The loss of SSD. "builtin" divides it by the number of foreground anchors of the mini-batch."""

    def __init__(self, sampler: RoISampler, loss: Loss, model: SSD) -> None:
        super().__init__(sampler, loss)
        self.model = model
        self.ratio = float(model.neg_to_pos_ratio)

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        logits, deltas = (
            outputs[name].to(torch.promote_types(outputs[name].dtype, torch.float32))
            for name in ("cls_logits", "bbox_regression")
        )
        deltas, targets = deltas[rois.foreground], rois.targets[rois.foreground]
        boxes = functional.smooth_l1_loss(deltas, targets, reduction="none").sum(dim=1)
        return {
            "bbox_regression": scatter_foreground(rois, boxes),
            "classification": functional.cross_entropy(logits, rois.labels, reduction="none", ignore_index=-1),
        }

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.model.box_coder.encode_single(truth, anchors)  # type: ignore[no-any-return]


def check_parts(model: SSD) -> None:
    """Raises `TypeError` if the model does not compute its losses as torchvision's does."""
    check_methods(model, SSD, ssd, "compute_loss", mined=MinedLoss)
    check_globals(ssd, F=functional)


def _check_step(model: SSD) -> None:
    mined = mined_loss(model)
    check_parts(model)
    if isinstance(mined, MinedSSDLoss) and model.neg_to_pos_ratio != mined.ratio:
        raise TypeError(
            f"neg_to_pos_ratio was {mined.ratio} when with_ohem was called, and is {model.neg_to_pos_ratio}: call "
            "with_ohem again, or give it RatioSampler(ratio)"
        )


def _num_classes(model: SSD) -> int | None:
    return getattr(model.head.classification_head, "num_columns", None)


@with_ohem.register(SSD, default=lambda model: RatioSampler(model.neg_to_pos_ratio))
def _install(model: SSD, sampler: Recorder, loss: Loss | None = None) -> None:
    """Makes an SSD mine. The default `loss` is "builtin" for a `RatioSampler`, and "cross_entropy" for other samplers.

    The two losses differ in their divisor. Other samplers may choose many anchors although the mini-batch has few
    foreground anchors. Divided by that small number, as with "builtin", the loss of the mini-batch would be too large.
    """
    check_parts(model)
    default: Loss = "builtin" if isinstance(sampler.sampler, RatioSampler) else "cross_entropy"
    model.compute_loss = MinedSSDLoss(sampler, default if loss is None else loss, model)
    guard(model, _check_step, 1, _num_classes)
