"""The region proposal network (RPN) of torchvision's R-CNN detectors: objects to ignore, and mining of its anchors.

torchvision's RPN labels all anchors of an image, and is trained on 256 of them, drawn at random. If `with_ohem` is
given an `rpn_sampler`, it chooses among all anchors instead. The head scores every anchor in any case, so that mining
needs no second pass. The two losses of the chosen anchors, and the proposals, are those of torchvision.

The RoIs of the sampler are the anchors, in pixels of the resized image. Their label is 1 for an anchor on an object,
0 for background, and -1 between the thresholds of the matching and on an object to ignore.

Shapes: A: anchors of an image   R: anchors of the mini-batch
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import rpn as torchvision_rpn
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_area

from ohem.boxes import intersection
from ohem.checks import check_callable, is_false
from ohem.integrations.dense import scatter_foreground
from ohem.integrations.parts import (
    check_globals,
    check_instance,
    check_overridden,
    check_parameters,
    check_random_sampler,
)
from ohem.losses import weighted
from ohem.recorder import Recorder
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.samplers import RoISampler
from ohem.targets import ignored

Column = list[Tensor]
"""A tensor per image, with a value for each anchor."""
Targets = list[dict[str, Tensor]]

BETA = 1 / 9  # of torchvision's smooth L1 loss
# Parameters in torchvision 0.19 to 0.29 of the methods that mining overrides.
_PARAMETERS = {
    "forward": ["self", "images", "features", "targets"],
    "compute_loss": ["self", "objectness", "pred_bbox_deltas", "labels", "regression_targets"],
}


class IgnoringRPN(RegionProposalNetwork):  # type: ignore[misc]  # torchvision is not typed
    """The `rpn` of a detector after `with_ohem`: it ignores the objects to ignore and the anchors inside them."""

    def assign_targets_to_anchors(self, anchors: Column, targets: Targets) -> tuple[Column, Column]:
        """Returns labels (A,) float, 1, 0 or -1 for neither, and matched boxes (A, 4), as the base class does."""
        # All keys of the targets are passed on, because the user's own matching may read more than the boxes.
        kept = [~ignored(target) for target in targets]
        without_ignored = [
            {**target, **{key: target[key][mask] for key in ("boxes", "labels") if key in target}}
            for target, mask in zip(targets, kept, strict=True)
        ]
        labels, matched = super().assign_targets_to_anchors(anchors, without_ignored)
        for label, boxes, target in zip(labels, anchors, targets, strict=True):
            if ignored(target).any():
                shared = intersection(boxes, target["boxes"][ignored(target)]).amax(dim=1)
                inside = (label == 0) & (shared >= 0.5 * box_area(boxes))
                # If every anchor were left out, the loss of the RPN would be NaN.
                label[inside] = -1 if (label >= 0).sum() > inside.sum() else 0
        return labels, matched


class OHEMRPN(IgnoringRPN):
    """The `rpn` of a detector whose anchors are mined: the same modules, with `mining` in place of random sampling."""

    mining: Recorder

    def forward(self, images: Any, features: dict[str, Tensor], targets: Targets | None = None) -> tuple[Column, Any]:
        """Returns proposals and losses, as `RegionProposalNetwork` does."""
        try:
            return super().forward(images, features, targets)  # type: ignore[no-any-return]
        finally:
            self.__dict__.pop("_assigned", None)  # for `compute_loss`; large

    def assign_targets_to_anchors(self, anchors: Column, targets: Targets) -> tuple[Column, Column]:
        """Returns labels (A,) and matched boxes (A, 4). An anchor is also ignored if it covers an object to ignore."""
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        for label, boxes, target in zip(labels, anchors, targets, strict=True):
            if ignored(target).any():  # such background would be mined first, although an object is there
                label[(label == 0) & covers(boxes, target["boxes"][ignored(target)])] = -1
        self._assigned = anchors, targets
        return labels, matched

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: Column, regression_targets: Column
    ) -> tuple[Tensor, Tensor]:
        """Returns `loss_objectness` and `loss_rpn_box_reg` of the anchors that the sampler chooses.

        The first is their mean log loss. The second is the smooth L1 loss of the foreground among them, divided by the
        number of all of them. Both are 0, with a graph, if none are chosen.
        """
        logits, wanted, deltas = objectness.flatten(), torch.cat(labels), torch.cat(regression_targets)
        rois = _rois(*self._assigned, labels, deltas)
        losses = partial(_anchor_losses, logits.detach(), pred_bbox_deltas.detach(), rois)
        chosen = self.mining(rois, losses).sort().values
        if is_false(rois.labels[chosen] != IGNORE):
            raise ValueError(f"{self.mining.sampler} chose an anchor whose label is -1: leave those out")
        foreground = rois.foreground[chosen]
        positive, count = chosen[foreground], max(len(chosen), 1)
        chosen = torch.cat([positive, chosen[~foreground]])  # in torchvision's order, for losses equal to the bit
        loss_objectness = functional.binary_cross_entropy_with_logits(logits[chosen], wanted[chosen], reduction="sum")
        loss_box_reg = functional.smooth_l1_loss(
            pred_bbox_deltas[positive], deltas[positive], beta=BETA, reduction="sum"
        )
        return loss_objectness / count, loss_box_reg / count


def mine_anchors(rpn: RegionProposalNetwork, sampler: Recorder | None) -> None:
    """Makes an `rpn` that passes `check_rpn` train on the anchors that `sampler` chooses; None draws them at random."""
    if sampler is not None:
        rpn.__class__ = rpn.__class__ if isinstance(rpn, OHEMRPN) else OHEMRPN
        rpn.mining = sampler
    elif type(rpn) is RegionProposalNetwork or isinstance(rpn, OHEMRPN):
        rpn.__class__ = IgnoringRPN
        rpn.__dict__.pop("mining", None)


def record(rpn_sampler: RoISampler | None, of_rois: Recorder) -> Recorder | None:
    """Returns the recorder of the anchors; None without a sampler.

    Raises:
        TypeError: `rpn_sampler` cannot be called.
        ValueError: it is the recorder of the RoIs.
    """
    if rpn_sampler is None:
        return None
    check_callable("rpn_sampler", rpn_sampler, "give OHEMSampler(256, nms_iou=None)")
    if rpn_sampler is of_rois:
        raise ValueError("rpn_sampler is the Recorder of the RoIs, which can record one of the two: give it another")
    return rpn_sampler if isinstance(rpn_sampler, Recorder) else Recorder(rpn_sampler)


def check_rpn(rpn: Any) -> None:
    """Raises `TypeError` if a part of `rpn` that mining bypasses or calls is not torchvision's."""
    if not isinstance(rpn, OHEMRPN) and type(rpn) not in (RegionProposalNetwork, IgnoringRPN):
        raise TypeError(
            f"with_ohem mines in torchvision's RegionProposalNetwork, and not in {type(rpn).__name__}, whose losses "
            "may differ: put torchvision's back, or leave rpn_sampler out"
        )
    check_overridden(rpn, RegionProposalNetwork, OHEMRPN, torchvision_rpn, *_PARAMETERS)
    check_parameters(RegionProposalNetwork, _PARAMETERS)
    check_instance(rpn, OHEMRPN, "assign_targets_to_anchors")
    check_random_sampler(rpn.fg_bg_sampler, "rpn.fg_bg_sampler")
    check_globals(torchvision_rpn, F=functional)


def _rois(anchors: Column, targets: Targets, labels: Column, deltas: Tensor) -> RoIs:
    """Returns the anchors with `labels` (A,), 1, 0 or -1, of each image, and regression targets `deltas` (R, 4)."""
    wanted = torch.cat(labels)
    # As torchvision's random sampling does: it draws from what is at least 1, and from what is 0.
    label = torch.where(wanted >= 1, 1, torch.where(wanted == 0, BACKGROUND, IGNORE))
    # Under autocast, torchvision makes anchors in half precision.
    boxes = [of_image.float() for of_image in anchors]
    truths = [target["boxes"][~ignored(target)].float() for target in targets]
    counts = torch.tensor([len(of_image) for of_image in boxes], device=label.device)
    return RoIs(
        boxes=torch.cat(boxes),
        images=torch.arange(len(boxes), device=label.device).repeat_interleave(counts),
        labels=label,
        # In an image without an object the targets are infinite.
        targets=torch.where((label > BACKGROUND)[:, None], deltas, 0).float(),
        ious=torch.cat([highest_iou(b, t)[0] for b, t in zip(boxes, truths, strict=True)]),
        num_images=len(boxes),
    )


def _anchor_losses(
    logits: Tensor, deltas: Tensor, rois: RoIs, cls_weight: float = 1.0, box_weight: float = 1.0
) -> Tensor:
    """Returns the loss (R,) float32 of every anchor; 0 where the label is -1."""
    wanted = rois.foreground.float()
    classification = functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    boxes = functional.smooth_l1_loss(
        deltas[rois.foreground].float(), rois.targets[rois.foreground], beta=BETA, reduction="none"
    )
    classification = torch.where(rois.labels == IGNORE, 0, classification)
    return weighted((classification, scatter_foreground(rois, boxes.sum(dim=1))), cls_weight, box_weight)
