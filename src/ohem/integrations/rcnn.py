"""torchvision's Faster R-CNN, Mask R-CNN and Keypoint R-CNN, trained on the RoIs that a sampler chooses.

torchvision's `RoIHeads` adds the ground truth to the proposals, labels all of them and draws some at random before it
looks at them. Here that draw leaves nothing out, and the sampler chooses instead; pooling, heads and losses stay
torchvision's own, so masks and keypoints are trained on the foreground that was chosen. Objects that `ignore` (G,) bool
of a target marks, if it has that, are neither foreground nor mined as background, and nothing to the RPN either. A
`fastrcnn_loss` that a person puts in place of torchvision's trains; it ranks too if it takes `reduction="none"`, and
is refused if it does not.

Shapes: R: RoIs of the mini-batch   N: images   K: foreground classes
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, roi_heads
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_area

from ohem.boxes import intersection
from ohem.checks import describe, is_false
from ohem.integrations.parts import check_draw, check_globals, guard, is_original
from ohem.integrations.registry import with_ohem
from ohem.losses import roi_losses, weighted
from ohem.readonly import read_only, waits_for_others
from ohem.recording import Recorder
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.targets import ignored

Column = list[Tensor]
"""A value of each RoI, image by image."""
Labelled = tuple[Column, Column, Column, Column]
"""Boxes (R, 4), index of the matched object (R,), label (R,) and regression target (R, 4) of RoIs."""

BETA = 1 / 9  # of torchvision's smooth L1 loss
# What is overridden or called here, as torchvision 0.29 has it.
_PARAMETERS = {
    "forward": ["self", "features", "proposals", "image_shapes", "targets"],
    "select_training_samples": ["self", "proposals", "targets"],
    "subsample": ["self", "labels"],
}


class IgnoringRPN(RegionProposalNetwork):  # type: ignore[misc]  # torchvision is not typed
    """What `with_ohem` makes of a detector's `rpn`: objects to ignore are not shown to it, nor anchors within them."""

    def assign_targets_to_anchors(self, anchors: Column, targets: list[dict[str, Tensor]]) -> tuple[Column, Column]:
        """As in `RegionProposalNetwork`: labels (A,) float, 1, 0 or -1 for neither, and matched boxes (A, 4)."""
        # Whole targets, since a person's own matching may read more of them than the boxes.
        kept = [~ignored(target) for target in targets]
        shown = [
            {**target, **{key: target[key][mask] for key in ("boxes", "labels") if key in target}}
            for target, mask in zip(targets, kept, strict=True)
        ]
        labels, matched = super().assign_targets_to_anchors(anchors, shown)
        for label, boxes, target in zip(labels, anchors, targets, strict=True):
            if ignored(target).any():
                shared = intersection(boxes, target["boxes"][ignored(target)]).amax(dim=1)
                out = (label == 0) & (shared >= 0.5 * box_area(boxes))
                # The loss of an RPN that is left no anchor at all is not a number.
                label[out] = -1 if (label >= 0).sum() > out.sum() else 0
        return labels, matched


class OHEMRoIHeads(RoIHeads):  # type: ignore[misc]  # torchvision is not typed
    """What `with_ohem` makes of a detector's `roi_heads`: the same modules, with `mining` for the random draw."""

    mining: Recorder
    chunk: int = 512
    """RoIs that go through the read-only pass at once: bounds its memory whatever R is."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As in `RoIHeads`."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)  # type: ignore[no-any-return]
        self._looked_at = features, image_shapes  # by the read-only pass; not longer than this call, for they are large
        try:
            detections, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            del self._looked_at
        if self.mining.chosen is not None and len(self.mining.chosen) == 0:
            # They are those of the stand-in, which keeps every parameter in the graph, as DDP needs.
            losses |= {name: 0 * losses[name] for name in ("loss_classifier", "loss_box_reg")}
        return detections, losses

    def subsample(self, labels: Column) -> Column:
        """Indices of all RoIs, image by image: what is trained on is chosen later, when they are known."""
        return [torch.arange(len(each), device=each.device) for each in labels]

    def select_training_samples(self, proposals: Column, targets: list[dict[str, Tensor]] | None) -> Labelled:
        """Those of the proposals and the ground truth that the sampler chooses, in order of their indices."""
        everything: Labelled = super().select_training_samples(proposals, targets)
        assert targets is not None  # or torchvision had raised
        rois = _rois(everything, targets)
        chosen = self.mining(rois, partial(self._read_only_losses, rois)).sort().values
        if is_false(rois.labels[chosen] != IGNORE):
            raise ValueError(f"{self.mining.sampler} chose a RoI whose label is -1: those are not to be trained on")
        if len(chosen) == 0:
            return _stand_in(everything, self._looked_at[1][0])
        kept = torch.zeros(len(rois), dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)
        masks = torch.split(kept, [len(each) for each in everything[0]])
        boxes, matched, labels, deltas = (
            [values[mask] for values, mask in zip(column, masks, strict=True)] for column in everything
        )
        return boxes, matched, labels, deltas

    def _read_only_losses(self, rois: RoIs, classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
        """Loss (R,) of every RoI, classification + box regression, from a pass that leaves no trace."""
        losses = torch.zeros(len(rois), device=rois.boxes.device)
        # Each chunk is a sample of all RoIs, so that batch norm in a box head sees much the same statistics in each.
        chunks = -(-len(rois) // self.chunk)
        with read_only(self):
            if waits_for_others(self.box_roi_pool, self.box_head, self.box_predictor):
                # Every process must make as many forwards, however many RoIs it has.
                chunks = min(chunks, 1)
                if not chunks:
                    self._losses(self._whole_image(rois))
            for first in range(chunks):
                part = torch.arange(first, len(rois), chunks, device=losses.device)
                losses[part] = weighted(self._losses(rois[part]), classifier, box_reg).to(losses.dtype)
        return losses

    def _losses(self, rois: RoIs) -> tuple[Tensor, Tensor]:
        features, image_shapes = self._looked_at
        per_image = torch.split(rois.boxes, torch.bincount(rois.images, minlength=rois.num_images).tolist())
        hidden = self.box_head(self.box_roi_pool(features, list(per_image), image_shapes))
        scores, deltas = self.box_predictor(hidden)
        if is_original(roi_heads.fastrcnn_loss, roi_heads, "fastrcnn_loss"):
            return roi_losses(scores, deltas.unflatten(1, (-1, 4)), rois, beta=BETA)
        return _replaced_losses(roi_heads.fastrcnn_loss, scores, deltas, rois)

    def _whole_image(self, rois: RoIs) -> RoIs:
        """Returns a single RoI of the background, the whole first image."""
        height, width = self._looked_at[1][0]
        zero = torch.zeros(1, dtype=torch.int64, device=rois.boxes.device)
        box = rois.boxes.new_tensor([[0, 0, width, height]])
        return RoIs(box, zero, zero, torch.zeros_like(box), rois.ious.new_zeros(1), rois.num_images)

    def __prepare_scriptable__(self) -> NoReturn:
        # Torch would compile, and leave in the model, whatever this returns: it would go on without mining, unnoticed.
        raise TypeError("a model with mining cannot be scripted: load its state_dict into one without, and script that")


@with_ohem.register(FasterRCNN)
@with_ohem.register(MaskRCNN)
@with_ohem.register(KeypointRCNN)
@with_ohem.register(GeneralizedRCNN)
def install(model: GeneralizedRCNN, sampler: Recorder) -> None:
    """Puts `sampler` in place of the random one of `model.roi_heads`.

    Raises:
        TypeError: these are other RoI heads than torchvision's, or a torchvision that they are not known of.
    """
    if not isinstance(model.roi_heads, OHEMRoIHeads) and type(model.roi_heads) is not RoIHeads:
        raise TypeError(
            f"with_ohem knows torchvision's RoIHeads, and not {type(model.roi_heads).__name__}, whose losses may be "
            f"others: say how to mine with them with with_ohem.register({type(model).__name__})"
        )
    for name, expected in _PARAMETERS.items():
        if list(inspect.signature(getattr(RoIHeads, name)).parameters) != expected:
            raise TypeError(
                f"with_ohem does not know RoIHeads.{name} of torchvision {torchvision.__version__}: "
                "install torchvision 0.29, or a later ohem"
            )
    check_parts(model)
    if type(model.rpn) is RegionProposalNetwork:
        model.rpn.__class__ = IgnoringRPN
    if type(model.roi_heads) is RoIHeads:
        model.roi_heads.__class__ = OHEMRoIHeads
    model.roi_heads.mining = sampler
    guard(model, _check_step, 1, _num_classes)


def check_parts(model: GeneralizedRCNN) -> None:
    """Raises `TypeError` where a part that mining bypasses or calls is not torchvision's."""
    heads = model.roi_heads
    kind = type(heads) if isinstance(heads, OHEMRoIHeads) else RoIHeads
    for name in _PARAMETERS:
        if not is_original(getattr(RoIHeads, name), roi_heads, name):
            raise TypeError(f"with_ohem would not use RoIHeads.{name}, which was replaced: put torchvision's back")
        usual = getattr(OHEMRoIHeads if isinstance(heads, OHEMRoIHeads) else RoIHeads, name)
        if name in vars(heads) or getattr(kind, name) is not usual:
            raise TypeError(
                f"with_ohem would not use the {name} of this {kind.__name__}, which was replaced: put torchvision's "
                "back, or say how to mine with yours with with_ohem.register"
            )
    check_draw(heads.fg_bg_sampler, "roi_heads.fg_bg_sampler")
    check_globals(roi_heads, F=functional)


def _check_step(model: GeneralizedRCNN) -> None:
    if not isinstance(model.roi_heads, OHEMRoIHeads):
        raise TypeError(
            f"the roi_heads, {type(model.roi_heads).__name__}, were replaced after with_ohem, so that nothing would be "
            "mined: call with_ohem again"
        )
    check_parts(model)


def _num_classes(model: GeneralizedRCNN) -> int | None:
    """Returns K + 1, if the predictor says so in the way of torchvision's."""
    return getattr(getattr(model.roi_heads.box_predictor, "cls_score", None), "out_features", None)


def _replaced_losses(loss: Callable[..., Any], scores: Tensor, deltas: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
    """Returns the two losses (R,) of each RoI by a person's own `fastrcnn_loss`; 0 where the label is -1.

    Raises:
        TypeError: it gives no loss for each RoI.
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
    found = loss(scores[used], deltas[used], labels, targets, reduction="none")
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"the fastrcnn_loss that was put in place must return two tensors, not {describe(found)}")
    for values in found:
        if not isinstance(values, Tensor) or values.shape != (len(rows),):
            raise TypeError(
                f"the fastrcnn_loss that was put in place must return losses of shape ({len(rows)},) with "
                f'reduction="none", not {describe(values)}'
            )
    classifier, box_reg = (torch.zeros_like(used, dtype=v.dtype).masked_scatter(used, v) for v in found)
    return classifier, box_reg


def _rois(everything: Labelled, targets: Sequence[Mapping[str, Tensor]]) -> RoIs:
    boxes, matched, labels, deltas = everything
    label = torch.cat([_without_ignored(*each) for each in zip(boxes, matched, labels, targets, strict=True)])
    truths = [target["boxes"][~ignored(target)] for target in targets]
    number = torch.tensor([len(each) for each in boxes], device=label.device)
    return RoIs(
        boxes=torch.cat(boxes),
        images=torch.arange(len(boxes), device=label.device).repeat_interleave(number),
        labels=label,
        # Where an image has no object they are infinite.
        targets=torch.where((label > BACKGROUND)[:, None], torch.cat(deltas), 0),
        ious=torch.cat([highest_iou(b.float(), t.float())[0] for b, t in zip(boxes, truths, strict=True)]),
        num_images=len(boxes),
    )


def _without_ignored(boxes: Tensor, matched: Tensor, labels: Tensor, target: Mapping[str, Tensor]) -> Tensor:
    """Labels (R,) of an image, -1 where the object is one to `ignore`, or a RoI of the background covers one."""
    ignore = ignored(target)
    if not ignore.any():
        return labels
    background = labels == BACKGROUND
    out = torch.where(background, covers(boxes, target["boxes"][ignore]), ignore[matched])
    return torch.where(out, IGNORE, labels)


def _stand_in(everything: Labelled, size: tuple[int, int]) -> Labelled:
    """The whole first image, `size` (height, width), as the only RoI, of the background."""
    boxes, matched, labels, deltas = ([values[:0] for values in column] for column in everything)
    boxes[0] = boxes[0].new_tensor([[0, 0, size[1], size[0]]])
    matched[0], labels[0], deltas[0] = (
        column[0].new_zeros(1, *column[0].shape[1:]) for column in (matched, labels, deltas)
    )
    return boxes, matched, labels, deltas
