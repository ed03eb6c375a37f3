"""torchvision's SSD and SSDlite. By default their own hard negatives, at 3 to 1, counted correctly.

torchvision mines by itself; where three times the positives are more than there are negatives, it counts positives
twice, and it trains nothing on an image without an object. `RatioSampler`, in its place, does neither.
"""

from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import ssd
from torchvision.models.detection.ssd import SSD

from ohem.integrations.dense import Loss, MinedLoss, Outputs, mined_loss, where_foreground
from ohem.integrations.parts import check_globals, check_methods, guard
from ohem.integrations.registry import with_ohem
from ohem.recording import Recorder
from ohem.rois import RoIs
from ohem.samplers import RatioSampler, RoISampler


class MinedSSDLoss(MinedLoss):
    """See `MinedLoss`. With "own", the losses are divided by the number of foreground anchors of the mini-batch."""

    def __init__(self, sampler: RoISampler, loss: Loss, model: SSD) -> None:
        super().__init__(sampler, loss)
        self.model = model
        self.ratio = float(model.neg_to_pos_ratio)

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        deltas, targets = outputs["bbox_regression"][rois.foreground].float(), rois.targets[rois.foreground]
        boxes = functional.smooth_l1_loss(deltas, targets, reduction="none").sum(dim=1)
        logits = outputs["cls_logits"].float()
        return {
            "bbox_regression": where_foreground(rois, boxes),
            "classification": functional.cross_entropy(logits, rois.labels, reduction="none", ignore_index=-1),
        }

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.model.box_coder.encode_single(truth, anchors)  # type: ignore[no-any-return]


def check_parts(model: SSD) -> None:
    """Raises `TypeError` where the model does not compute its losses as torchvision's does."""
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
    """`loss`: if not given, "own" for a `RatioSampler`, and for others "cross_entropy", the same but for its divisor.

    Others may choose any number for each foreground anchor, of which an image may have none: divided by that number,
    its losses would outweigh all others.
    """
    check_parts(model)
    usual: Loss = "own" if isinstance(sampler.sampler, RatioSampler) else "cross_entropy"
    model.compute_loss = MinedSSDLoss(sampler, usual if loss is None else loss, model)
    guard(model, _check_step, 1, _num_classes)
