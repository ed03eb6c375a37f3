"""torchvision's Faster R-CNN, Mask R-CNN and Keypoint R-CNN, trained on the RoIs that a sampler chooses.

torchvision's `RoIHeads` adds the ground truth to the proposals, labels all of them, and draws some at random before it
pools their features. Here nothing is left out at random, and the sampler chooses instead. Pooling, heads and losses
stay torchvision's own, so masks and keypoints are trained on the chosen foreground. A target may mark objects with
`ignore` (G,) bool: they are neither foreground nor mined as background, and the RPN does not use them either. If the
user replaced torchvision's `fastrcnn_loss`, the replacement is trained, and it ranks too. It must take
`reduction="none"`, otherwise it is refused. `ohem.integrations.rpn` mines the anchors of the RPN.

Shapes: R: RoIs of the mini-batch   N: images   K: foreground classes
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, roi_heads
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from ohem.checks import describe, is_false
from ohem.integrations.parts import (
    check_globals,
    check_overridden,
    check_parameters,
    check_random_sampler,
    guard,
    is_original,
)
from ohem.integrations.registry import with_ohem
from ohem.integrations.rpn import BETA, OHEMRPN, check_rpn, mine_anchors, record
from ohem.integrations.rpn import IgnoringRPN as IgnoringRPN  # models that ohem 0.2 pickled have it here
from ohem.losses import roi_losses, weighted
from ohem.read_only import read_only, waits_for_others
from ohem.recorder import Recorder
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.samplers import RoISampler
from ohem.targets import ignored

Column = list[Tensor]
"""A tensor per image, with a value for each RoI."""
LabelledRoIs = tuple[Column, Column, Column, Column]
"""Boxes (R, 4), index of the matched object (R,), label (R,) and regression target (R, 4) of RoIs."""

# Parameters in torchvision 0.19 to 0.29 of the methods that are overridden or called here.
_PARAMETERS = {
    "forward": ["self", "features", "proposals", "image_shapes", "targets"],
    "select_training_samples": ["self", "proposals", "targets"],
    "subsample": ["self", "labels"],
}


class OHEMRoIHeads(RoIHeads):  # type: ignore[misc]  # torchvision is not typed
    """The `roi_heads` of a detector after `with_ohem`: the same modules, with `mining` in place of random sampling."""

    mining: Recorder
    chunk: int = 512
    """Number of RoIs that go through the read-only pass at once, which limits its memory for any R."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Returns detections and losses, as `RoIHeads` does."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)  # type: ignore[no-any-return]
        self._inputs = features, image_shapes  # for the read-only pass; deleted after this call, because they are large
        try:
            detections, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            del self._inputs
        if self.mining.chosen is not None and len(self.mining.chosen) == 0:
            # The losses of the stand-in RoI become 0. It keeps every parameter in the graph, as DDP requires.
            losses |= {name: 0 * losses[name] for name in ("loss_classifier", "loss_box_reg")}
        return detections, losses

    def subsample(self, labels: Column) -> Column:
        """Returns the indices of all RoIs, image by image. The sampler chooses among them later."""
        return [torch.arange(len(of_image), device=of_image.device) for of_image in labels]

    def select_training_samples(self, proposals: Column, targets: list[dict[str, Tensor]] | None) -> LabelledRoIs:
        """Returns the proposals and ground-truth boxes that the sampler chooses, in order of their indices."""
        all_rois: LabelledRoIs = super().select_training_samples(proposals, targets)
        assert targets is not None  # torchvision raises without targets
        rois = _rois(all_rois, targets)
        chosen = self.mining(rois, partial(self._read_only_losses, rois)).sort().values
        if is_false(rois.labels[chosen] != IGNORE):
            raise ValueError(f"{self.mining.sampler} chose a RoI whose label is -1: leave those out")
        if len(chosen) == 0:
            return _stand_in(all_rois, self._inputs[1][0])
        kept = torch.zeros(len(rois), dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)
        masks = torch.split(kept, [len(boxes) for boxes in all_rois[0]])
        boxes, matched, labels, deltas = (
            [values[mask] for values, mask in zip(column, masks, strict=True)] for column in all_rois
        )
        return boxes, matched, labels, deltas

    def _read_only_losses(self, rois: RoIs, cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
        """Returns the loss (R,) of every RoI, classification + box regression, from a pass without side effects."""
        losses = torch.zeros(len(rois), device=rois.boxes.device)
        # Each chunk takes RoIs from all over the mini-batch, so that batch norm sees similar statistics in all chunks.
        chunks = -(-len(rois) // self.chunk)
        with read_only(self):
            if waits_for_others(self.box_roi_pool, self.box_head, self.box_predictor):
                # Every process must run the same number of forward passes, however many RoIs it has.
                chunks = min(chunks, 1)
                if not chunks:
                    self._losses(self._whole_image(rois))
            for first in range(chunks):
                part = torch.arange(first, len(rois), chunks, device=losses.device)
                losses[part] = weighted(self._losses(rois[part]), cls_weight, box_weight).to(losses.dtype)
        return losses

    def _losses(self, rois: RoIs) -> tuple[Tensor, Tensor]:
        features, image_shapes = self._inputs
        per_image = torch.split(rois.boxes, torch.bincount(rois.images, minlength=rois.num_images).tolist())
        hidden = self.box_head(self.box_roi_pool(features, list(per_image), image_shapes))
        scores, deltas = self.box_predictor(hidden)
        if is_original(roi_heads.fastrcnn_loss, roi_heads, "fastrcnn_loss"):
            return roi_losses(scores, deltas.unflatten(1, (-1, 4)), rois, beta=BETA)
        return _replaced_losses(roi_heads.fastrcnn_loss, scores, deltas, rois)

    def _whole_image(self, rois: RoIs) -> RoIs:
        """Returns a single background RoI: the whole first image."""
        height, width = self._inputs[1][0]
        zero = torch.zeros(1, dtype=torch.int64, device=rois.boxes.device)
        box = rois.boxes.new_tensor([[0, 0, width, height]])
        return RoIs(box, zero, zero, torch.zeros_like(box), rois.ious.new_zeros(1), rois.num_images)

    def __prepare_scriptable__(self) -> NoReturn:
        # Torch would compile what this returns, and leave it in the model, which would silently train without mining.
        raise TypeError("a model with mining cannot be scripted: load its state_dict into one without, and script that")


@with_ohem.register(FasterRCNN)
@with_ohem.register(MaskRCNN)
@with_ohem.register(KeypointRCNN)
@with_ohem.register(GeneralizedRCNN)
def install(model: GeneralizedRCNN, sampler: Recorder, rpn_sampler: RoISampler | None = None) -> None:
    """Replaces the random sampling of `model.roi_heads` by `sampler`, and that of `model.rpn` by `rpn_sampler`, if any.

    Raises:
        TypeError: the RoI heads or the RPN are not torchvision's, or those of this version of torchvision are not
            supported; or `rpn_sampler` cannot be called.
    """
    if not isinstance(model.roi_heads, OHEMRoIHeads) and type(model.roi_heads) is not RoIHeads:
        raise TypeError(
            f"with_ohem knows torchvision's RoIHeads, and not {type(model.roi_heads).__name__}, whose losses may "
            f"differ: say how to mine with them with with_ohem.register({type(model).__name__})"
        )
    recorder = record(rpn_sampler, sampler)
    check_parameters(RoIHeads, _PARAMETERS)
    check_parts(model)
    if recorder is not None:
        check_rpn(model.rpn)
    mine_anchors(model.rpn, recorder)
    if type(model.roi_heads) is RoIHeads:
        model.roi_heads.__class__ = OHEMRoIHeads
    model.roi_heads.mining = sampler
    guard(model, partial(_check_step, mines_anchors=recorder is not None), 1, _num_classes)


def check_parts(model: GeneralizedRCNN) -> None:
    """Raises `TypeError` if a part that mining bypasses or calls is not torchvision's."""
    heads = model.roi_heads
    check_overridden(heads, RoIHeads, OHEMRoIHeads, roi_heads, *_PARAMETERS)
    check_random_sampler(heads.fg_bg_sampler, "roi_heads.fg_bg_sampler")
    check_globals(roi_heads, F=functional)


def _check_step(model: GeneralizedRCNN, mines_anchors: bool = False) -> None:
    parts = {"roi_heads": OHEMRoIHeads, **({"rpn": OHEMRPN} if mines_anchors else {})}
    for name, kind in parts.items():
        part = getattr(model, name)
        if not isinstance(part, kind):
            raise TypeError(
                f"the {name} of the model, {type(part).__name__}, was replaced after with_ohem, and nothing would be "
                "mined in it: call with_ohem again"
            )
    check_parts(model)
    if mines_anchors:
        check_rpn(model.rpn)


def _num_classes(model: GeneralizedRCNN) -> int | None:
    """Returns K + 1 if the predictor has it where torchvision's has it, else None."""
    return getattr(getattr(model.roi_heads.box_predictor, "cls_score", None), "out_features", None)


def _replaced_losses(loss: Callable[..., Any], scores: Tensor, deltas: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
    """Returns the two losses (R,) of each RoI by the user's own `fastrcnn_loss`; 0 where the label is -1.

    Raises:
        TypeError: `loss` does not return a loss for each RoI.
    """
    if "reduction" not in inspect.signature(loss).parameters:
        raise TypeError(
            f"with_ohem cannot rank by {roi_heads.__name__}.fastrcnn_loss, which was replaced and gives two sums: give "
            'it an argument reduction="mean" and make it return the two losses of each RoI, (R,), for "none", or put '
            "torchvision's back"
        )
    used = rois.labels != IGNORE
    rows = rois[used]
    counts = torch.bincount(rows.images, minlength=rois.num_images).tolist()
    labels, targets = (list(torch.split(values, counts)) for values in (rows.labels, rows.targets))
    losses = loss(scores[used], deltas[used], labels, targets, reduction="none")
    if not isinstance(losses, (tuple, list)) or len(losses) != 2:
        raise TypeError(f"your fastrcnn_loss must return two tensors, not {describe(losses)}: return both losses")
    for values in losses:
        if not isinstance(values, Tensor) or values.shape != (len(rows),):
            raise TypeError(
                f"your fastrcnn_loss must return losses of shape ({len(rows)},), one for each RoI, with "
                f'reduction="none", not {describe(values)}'
            )
    classifier, box_reg = (torch.zeros_like(used, dtype=v.dtype).masked_scatter(used, v) for v in losses)
    return classifier, box_reg


def _rois(all_rois: LabelledRoIs, targets: Sequence[Mapping[str, Tensor]]) -> RoIs:
    boxes, matched, labels, deltas = all_rois
    images = zip(boxes, matched, labels, targets, strict=True)
    label = torch.cat([_without_ignored(*image) for image in images])
    truths = [target["boxes"][~ignored(target)] for target in targets]
    counts = torch.tensor([len(of_image) for of_image in boxes], device=label.device)
    return RoIs(
        boxes=torch.cat(boxes),
        images=torch.arange(len(boxes), device=label.device).repeat_interleave(counts),
        labels=label,
        # In an image without an object the targets are infinite.
        targets=torch.where((label > BACKGROUND)[:, None], torch.cat(deltas), 0),
        ious=torch.cat([highest_iou(b.float(), t.float())[0] for b, t in zip(boxes, truths, strict=True)]),
        num_images=len(boxes),
    )


def _without_ignored(boxes: Tensor, matched: Tensor, labels: Tensor, target: Mapping[str, Tensor]) -> Tensor:
    """Returns labels (R,) of an image, -1 if the object is ignored, or if a background RoI covers an ignored one."""
    ignore = ignored(target)
    if not ignore.any():
        return labels
    background = labels == BACKGROUND
    excluded = torch.where(background, covers(boxes, target["boxes"][ignore]), ignore[matched])
    return torch.where(excluded, IGNORE, labels)


def _stand_in(all_rois: LabelledRoIs, size: tuple[int, int]) -> LabelledRoIs:
    """Returns a single background RoI: the whole first image, `size` (height, width)."""
    boxes, matched, labels, deltas = ([values[:0] for values in column] for column in all_rois)
    boxes[0] = boxes[0].new_tensor([[0, 0, size[1], size[0]]])
    matched[0], labels[0], deltas[0] = (
        column[0].new_zeros(1, *column[0].shape[1:]) for column in (matched, labels, deltas)
    )
    return boxes, matched, labels, deltas
