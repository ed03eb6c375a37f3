"""What torchvision's one-stage detectors have in common: each anchor has a loss, and those of the chosen are trained.

The head scores every anchor in any case, so no second pass is needed: the losses of all anchors are computed without
gradient to rank them by their sum, and those of the chosen with it, by the same function. The sampler's RoIs are the
anchors, labelled by the model's own matching: -1 between its thresholds, or on an object that `ignore` (G,) bool of a
target marks, if it has that. The labels of RetinaNet and FCOS are one more than the target's, which may start at 0.

`loss` says what is trained:

    "own"            the model's own loss, without the anchors that are not chosen. It is divided as the model does, by
                     the number of foreground anchors, chosen or not: with all anchors it is torchvision's.
    "cross_entropy"  cross entropy (of each class with sigmoid, where the head is made for it), in place of focal loss,
                     and the model's own box loss, both averaged over the chosen, background included, as in the paper.

Shapes: R: anchors of the mini-batch   N: images   A: anchors of an image   G: objects of an image
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ohem.checks import check_choice, describe
from ohem.losses import weighted
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.samplers import RoISampler
from ohem.targets import ignored

Loss = Literal["own", "cross_entropy"]
Outputs = Mapping[str, Tensor]


class MinedLoss(ABC):
    """Stands in for the method `compute_loss` of torchvision's model or head.

    It is an attribute of that instance, which keeps its class. It knows the parts of the model that it needs, and is
    copied and pickled with them.

    Args:
        sampler: which anchors to train on.
        loss: what is trained, as told above.

    Raises:
        ValueError: there is no such loss.
    """

    first_class = 1
    """The label of the first foreground class in a target."""

    @property
    def between(self) -> int | None:
        """The mark of an anchor that is neither foreground nor background; None: the model has no such anchors."""
        return None

    def __init__(self, sampler: RoISampler, loss: Loss) -> None:
        check_choice("loss", loss, ("own", "cross_entropy"))
        self.sampler, self.loss = sampler, loss

    def __call__(
        self,
        targets: Sequence[Mapping[str, Tensor]],
        head_outputs: Outputs,
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Scalar losses, float32, by torchvision's names.

        Args:
            targets: per image `boxes` (G, 4), `labels` (G,) and, optionally, `ignore` (G,) bool.
            head_outputs: (N, A, ...) by name.
            anchors: per image (A, 4) boxes in pixels of the resized image.
            matched_idxs: per image (A,) int64, the object of each anchor; -1 none, -2 between the thresholds.
        """
        images = zip(targets, anchors, matched_idxs, strict=True)
        parts = [self._image(*image, number) for number, image in enumerate(images)]
        *columns, truth = (torch.cat(column) for column in zip(*parts, strict=True))
        boxes, numbers, labels, deltas, ious = columns
        rois = RoIs(boxes, numbers, labels, deltas, ious, len(parts))
        outputs = {name: output.flatten(0, 1) for name, output in head_outputs.items()}

        def ranking(classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
            with torch.no_grad():
                losses = self.anchor_losses(outputs, rois, truth)
            torch.clear_autocast_cache()  # A loss of the person's own may have weights: see `read_only`.
            classification = losses.pop("classification")
            return weighted((classification, torch.stack([*losses.values()]).sum(dim=0)), classifier, box_reg)

        chosen = self.sampler(rois, ranking)
        picked = {name: output[chosen] for name, output in outputs.items()}
        divisor = self.divisor(rois)[rois.images[chosen]] if self.loss == "own" else max(len(chosen), 1)
        losses = self.anchor_losses(picked, rois[chosen], truth[chosen])
        return {name: (values / divisor).sum() for name, values in losses.items()}

    @abstractmethod
    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        """Losses (R,), float32, of R anchors by torchvision's names, divided by nothing.

        Args:
            outputs: what the head gives for them, (R, ...) by name.
            rois: the anchors.
            truth: (R, 4) the boxes of their objects, in pixels; zero where not foreground.
        """

    @abstractmethod
    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        """Regression targets (R, 4) that take `anchors` (R, 4) to the boxes `truth` (R, 4)."""

    def divisor(self, rois: RoIs) -> Tensor:
        """By what the model divides the losses of each image, (N,): the foreground anchors of the mini-batch."""
        return rois.foreground.sum().clamp(min=1).expand(rois.num_images)

    def _image(self, target: Mapping[str, Tensor], anchors: Tensor, matched: Tensor, number: int) -> tuple[Tensor, ...]:
        """The columns of the RoIs of image `number`, and the boxes of their objects (A, 4)."""
        # Under autocast torchvision makes anchors in half precision.
        anchors, objects = anchors.float(), target["boxes"].float()
        ignore = ignored(target)
        foreground = matched >= 0
        own = matched[foreground]
        labels = torch.full_like(matched, BACKGROUND)
        if self.between is not None:
            labels[matched == self.between] = IGNORE
        labels[foreground] = torch.where(ignore, IGNORE, target["labels"].long() - self.first_class + 1)[own]
        if ignore.any():
            labels[(labels == BACKGROUND) & covers(anchors, objects[ignore])] = IGNORE
        truth, deltas = torch.zeros_like(anchors), torch.zeros_like(anchors)
        truth[foreground] = objects[own]
        deltas[foreground] = self.encode(objects[own], anchors[foreground])
        ious, _ = highest_iou(anchors, objects[~ignore])
        return anchors, torch.full_like(matched, number), labels, deltas, ious, truth


def where_foreground(rois: RoIs, values: Tensor) -> Tensor:
    """`values` (F,) of the F foreground RoIs as those of all (R,), zero elsewhere, with the graph of `values`."""
    return values.new_zeros(len(rois)).masked_scatter(rois.foreground, values)


def per_anchor(values: object, like: Tensor, name: str) -> Tensor:
    """Returns what the loss `name`, which a person may have replaced, gives with `reduction="none"`.

    Raises:
        TypeError: it is not of the shape of `like`.
    """
    if not isinstance(values, Tensor) or values.shape != like.shape:
        raise TypeError(
            f'with_ohem calls {name} with reduction="none", which must give a loss of shape {tuple(like.shape)}, '
            f"not {describe(values)}: make yours do so, or put torchvision's back"
        )
    return values


def mined_loss(part: nn.Module) -> MinedLoss:
    """Returns the `MinedLoss` that `with_ohem` made the `compute_loss` of `part`, the model or its head.

    Raises:
        TypeError: it was replaced since.
    """
    found = vars(part).get("compute_loss")
    if not isinstance(found, MinedLoss):
        raise TypeError(
            f"the compute_loss of {type(part).__name__} was replaced after with_ohem, so that nothing would be mined: "
            "call with_ohem again on the model as it is now, and put no loss of yours in that place"
        )
    return found
