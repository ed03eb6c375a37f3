"""MONAI's `RetinaNetDetector`, in 2-D and 3-D: mining in place of its `HardNegativeSampler`.

MONAI calls its sampler with the labels and the highest scores of an image's anchors: a sampler in that slot could only
rank by scores. Here the anchors are ranked by the sum of the losses that the detector's `cls_loss_func` and
`box_loss_func` give with `reduction="none"`. Where a loss has several columns, such as one for each class, that of an
anchor is their mean if the detector's `reduction` is "mean", and their sum if it is "sum".

The losses of the chosen are computed by MONAI's own code. MONAI trains its box loss on all foreground anchors, whatever
its sampler chooses; here it is trained on the chosen foreground, as in the paper.

Shapes: R: anchors of the mini-batch   A: anchors of an image   G: objects of an image   D: 2 or 3 dimensions
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from torch import Tensor

from ohem.checks import describe, is_false
from ohem.integrations.registry import with_ohem
from ohem.losses import weighted
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.samplers import OHEMSampler, RoISampler
from ohem.targets import MARKS, ignored

ANCHORS = 256
"""Anchors per image where the detector has no sampler with a number of its own."""
METHODS = ("compute_loss", "compute_cls_loss", "compute_box_loss")
"""Methods of the detector that mining replaces or relies on."""
Targets = Sequence[Mapping[str, Tensor]]


class MinedDetectorLoss:
    """Replaces the method `compute_loss` of a detector: an attribute of that instance, whose class does not change.

    Args:
        sampler: chooses the anchors to train on.
        detector: the detector, which computes the losses.
    """

    def __init__(self, sampler: RoISampler, detector: Any) -> None:
        self.sampler, self.detector = sampler, detector

    def __call__(
        self, outputs: Mapping[str, Tensor], targets: Targets, anchors: Sequence[Tensor], per_level: Sequence[int]
    ) -> dict[str, Tensor]:
        """Computes the losses: scalars, by MONAI's names.

        Args:
            outputs: outputs of the network, (N, A, classes) and (N, A, 2 D) by name.
            targets: boxes (G, 2 D) and labels (G,) of each image, and optionally `ignore` (G,) bool.
            anchors: boxes (A, 2 D) of each image.
            per_level: number of locations of the anchors of each level.
        """
        check_parts(self.detector)
        if self.detector.fg_bg_sampler is not None:
            raise TypeError(
                f"a {type(self.detector.fg_bg_sampler).__name__} was set after with_ohem, and would not be used: call "
                "with_ohem last, or set fg_bg_sampler to None"
            )
        matched = self.detector.compute_anchor_matched_idxs(anchors, targets, per_level)
        parts = [self._image(*image) for image in zip(targets, anchors, matched, strict=True)]
        boxes, labels, deltas, ious = (torch.cat(column) for column in zip(*parts, strict=True))
        images = torch.arange(len(parts), device=boxes.device).repeat_interleave(len(boxes) // max(len(parts), 1))
        rois = RoIs(boxes, images, labels, deltas, ious, len(parts))

        def ranking(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
            with torch.no_grad():
                losses = self._anchor_losses(outputs, targets, anchors, self._without(matched, rois.labels != IGNORE))
            torch.clear_autocast_cache()  # The user's own loss may have weights: see `read_only`.
            return weighted(losses, cls_weight, box_weight)

        chosen = self.sampler(rois, ranking)
        if is_false(rois.labels[chosen] != IGNORE):
            raise ValueError("the sampler chose ignored anchors: those with label -1 must not be trained on")
        names = self.detector.cls_key, self.detector.box_reg_key
        # Empty slices keep every output in the graph, as DistributedDataParallel requires.
        losses = {name: outputs[name][:, :0].sum() for name in names}
        if len(chosen):
            kept = self._without(matched, torch.zeros_like(labels, dtype=torch.bool).index_fill(0, chosen, True))
            losses[names[0]] = losses[names[0]] + self.detector.compute_cls_loss(outputs[names[0]], targets, kept)
            losses[names[1]] = losses[names[1]] + self.detector.compute_box_loss(
                outputs[names[1]], targets, anchors, kept
            )
        return losses

    def _image(self, target: Mapping[str, Tensor], anchors: Tensor, matched: Tensor) -> tuple[Tensor, ...]:
        """Returns boxes (A, 2 D), labels (A,), regression targets (A, 2 D) and highest IoU (A,) of the anchors."""
        detector, anchors = self.detector, anchors.float()
        objects = target[detector.target_box_key].to(anchors)
        classes = target[detector.target_label_key].to(matched)
        if is_false((classes >= 0) & (classes < detector.num_classes)):
            raise ValueError(f"labels of MONAI's targets must be from 0 to {detector.num_classes - 1}: correct yours")
        ignore = ignored({"boxes": objects, **{mark: target[mark] for mark in MARKS if mark in target}})
        labels = torch.full_like(matched, BACKGROUND)
        labels[matched == detector.proposal_matcher.BETWEEN_THRESHOLDS] = IGNORE
        foreground = matched >= 0
        own = matched[foreground]
        labels[foreground] = torch.where(ignore, IGNORE, classes + 1)[own]
        if ignore.any():
            labels[(labels == BACKGROUND) & covers(anchors, objects[ignore])] = IGNORE
        deltas = torch.zeros_like(anchors)
        deltas[foreground] = detector.box_coder.encode_single(objects[own], anchors[foreground])
        ious, _ = highest_iou(anchors, objects[~ignore])
        return anchors, labels, deltas, ious

    def _without(self, matched: Sequence[Tensor], used: Tensor) -> list[Tensor]:
        """Returns `matched` (A,) of each image, between the thresholds where `used` (R,) is false."""
        masks = torch.split(used, [len(of_image) for of_image in matched])
        mark = self.detector.proposal_matcher.BETWEEN_THRESHOLDS
        return [torch.where(mask, of_image, mark) for of_image, mask in zip(matched, masks, strict=True)]

    def _anchor_losses(
        self, outputs: Mapping[str, Tensor], targets: Targets, anchors: Sequence[Tensor], matched: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Computes the classification and the box loss of each anchor, (R,) float32; 0 where it has none."""
        detector = self.detector
        pairs, box_pairs = [], []
        columns = (targets, anchors, matched, outputs[detector.cls_key], outputs[detector.box_reg_key])
        for target, boxes, of_image, logits, deltas in zip(*columns, strict=True):
            pairs.append(detector.get_cls_train_sample_per_image(logits, target, of_image))
            box_pairs.append(detector.get_box_train_sample_per_image(deltas, target, boxes, of_image))
        indices = torch.cat(list(matched))
        classified = indices != detector.proposal_matcher.BETWEEN_THRESHOLDS
        classification = _rows("cls_loss_func", detector.cls_loss_func, pairs)
        boxes = _rows("box_loss_func", detector.box_loss_func, box_pairs)
        zeros = torch.zeros(len(indices), device=indices.device)
        return zeros.masked_scatter(classified, classification), zeros.masked_scatter(indices >= 0, boxes)


def _rows(name: str, loss: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Computes the loss (R,) float32 of each row of `pairs`, the outputs and their targets of each image."""
    given, wanted = (torch.cat(column) for column in zip(*pairs, strict=True))
    if not len(given):
        return given.new_zeros(0, dtype=torch.float32)
    values: object = unreduced(name, loss)(given, wanted)
    if not isinstance(values, Tensor) or not values.dim() or len(values) != len(given):
        raise TypeError(
            f'with_ohem calls {name} with reduction="none", which must give a loss for each of {len(given)} anchors, '
            f"not {describe(values)}: set one of torch's or MONAI's losses that does"
        )
    rows = values.float().reshape(len(given), -1)
    return rows.sum(dim=1) if loss.reduction == "sum" else rows.mean(dim=1)


def unreduced(name: str, loss: Any) -> Callable[..., Any]:
    """Returns a copy of `loss` with `reduction="none"` that shares its weights.

    Raises:
        TypeError: it does not say how it is reduced, so that there is no loss of a single anchor.
    """
    if getattr(loss, "reduction", None) not in ("mean", "sum"):
        raise TypeError(
            f'with_ohem needs a {name} whose reduction is "mean" or "sum", as in torch and MONAI, to compute the loss '
            f"of each anchor, and {type(loss).__name__} has none: set another one, or give yours one"
        )
    twin = copy.copy(loss)
    twin.reduction = "none"
    return twin  # type: ignore[no-any-return]


def check_parts(detector: RetinaNetDetector) -> None:
    """Raises `TypeError` if the detector does not compute its losses as MONAI's does."""
    for name in METHODS:
        replaced = name in vars(detector) and not isinstance(vars(detector)[name], MinedDetectorLoss)
        if replaced or getattr(type(detector), name) is not getattr(RetinaNetDetector, name):
            raise TypeError(
                f"with_ohem would not use the {name} of this {type(detector).__name__}, which is not that of MONAI's "
                "RetinaNetDetector: put MONAI's back, or register your detector"
            )
    unreduced("cls_loss_func", detector.cls_loss_func)
    unreduced("box_loss_func", detector.box_loss_func)


def _default(detector: RetinaNetDetector) -> RoISampler:
    """Returns a sampler of as many anchors as the detector's own sampler draws, without NMS."""
    return OHEMSampler(getattr(detector.fg_bg_sampler, "batch_size_per_image", ANCHORS), nms_iou=None)


@with_ohem.register(RetinaNetDetector, default=_default)
def _install(detector: RetinaNetDetector, sampler: RoISampler) -> None:
    check_parts(detector)
    detector.fg_bg_sampler = None
    vars(detector)["compute_loss"] = MinedDetectorLoss(sampler, detector)
