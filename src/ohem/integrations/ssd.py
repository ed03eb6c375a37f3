"""torchvision's SSD and SSDlite. By default their own hard negatives, at 3 to 1, counted correctly.

torchvision mines by itself; where three times the positives are more than there are negatives, it counts positives
twice, and it trains nothing on an image without an object. `RatioSampler`, in its place, does neither.
"""

from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD

from ohem.integrations.dense import Loss, MinedLoss, Outputs, check_own_loss, where_foreground
from ohem.integrations.registry import with_ohem
from ohem.recording import Recorder
from ohem.rois import RoIs
from ohem.samplers import RatioSampler, RoISampler


class MinedSSDLoss(MinedLoss):
    """See `MinedLoss`. With "own", the losses are divided by the number of foreground anchors of the mini-batch."""

    def __init__(self, sampler: RoISampler, loss: Loss, box_coder: BoxCoder) -> None:
        super().__init__(sampler, loss)
        self.box_coder = box_coder

    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        deltas, targets = outputs["bbox_regression"][rois.foreground].float(), rois.targets[rois.foreground]
        boxes = functional.smooth_l1_loss(deltas, targets, reduction="none").sum(dim=1)
        logits = outputs["cls_logits"].float()
        return {
            "bbox_regression": where_foreground(rois, boxes),
            "classification": functional.cross_entropy(logits, rois.labels, reduction="none", ignore_index=-1),
        }

    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        return self.box_coder.encode_single(truth, anchors)  # type: ignore[no-any-return]


@with_ohem.register(SSD, default=lambda model: RatioSampler(model.neg_to_pos_ratio))
def _install(model: SSD, sampler: Recorder, loss: Loss | None = None) -> None:
    """`loss`: if not given, "own" for a `RatioSampler`, and for others "cross_entropy", the same but for its divisor.

    Others may choose any number for each foreground anchor, of which an image may have none: divided by that number,
    its losses would outweigh all others.
    """
    check_own_loss((model, SSD))
    usual: Loss = "own" if isinstance(sampler.sampler, RatioSampler) else "cross_entropy"
    model.compute_loss = MinedSSDLoss(sampler, loss or usual, model.box_coder)
