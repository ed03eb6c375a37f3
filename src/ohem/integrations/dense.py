"""What torchvision's one-stage detectors have in common: each anchor has a loss, and the chosen anchors are trained.

The head scores every anchor in any case, so that mining needs no second pass. The losses of all anchors are computed
without gradient, and the anchors are ranked by their sum. The losses of the chosen are then computed with gradient, by
the same function. The sampler's RoIs are the anchors, labelled by the model's own matching. The label is -1 between its
thresholds, and on an object that the target marks with `ignore` (G,) bool. The labels of RetinaNet and FCOS are one
more than those of the target, which may start at 0.

`loss` says what is trained:

- "builtin": the model's own loss, without the anchors that are not chosen. As in the model, it is divided by the number
  of foreground anchors, chosen or not. With all anchors, it is torchvision's loss.
- "cross_entropy": cross entropy in place of focal loss (one for each class if the head has a sigmoid), and the model's
  own box loss. Both are averaged over the chosen, background included, as in the paper.

Shapes: R: anchors of the mini-batch   N: images   A: anchors of an image   G: objects of an image
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ohem.checks import check_choice, describe
from ohem.integrations.parts import guard
from ohem.losses import weighted
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.samplers import RoISampler
from ohem.targets import ignored

Loss = Literal["builtin", "cross_entropy"]
Outputs = Mapping[str, Tensor]


class MinedLoss(ABC):
    """Replaces the method `compute_loss` of torchvision's model or head.

    It is an attribute of that instance, whose class does not change. It holds the parts of the model that it needs, and
    is copied and pickled with them.

    Args:
        sampler: chooses the anchors to train on.
        loss: what is trained: see the docstring of the module.

    Raises:
        ValueError: there is no such loss.
    """

    first_class = 1
    """Label of the first foreground class in a target."""

    @property
    def between_thresholds(self) -> int | None:
        """Mark of an anchor that is neither foreground nor background; None if the model has no such anchors."""
        return None

    def __init__(self, sampler: RoISampler, loss: Loss) -> None:
        check_choice("loss", loss, ("builtin", "cross_entropy"))
        self.sampler, self.loss = sampler, loss

    def __call__(
        self,
        targets: Sequence[Mapping[str, Tensor]],
        head_outputs: Outputs,
        anchors: Sequence[Tensor],
        matched_idxs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses: float32 scalars, by torchvision's names.

        Args:
            targets: `boxes` (G, 4), `labels` (G,) and optionally `ignore` (G,) bool of each image.
            head_outputs: outputs of the head (N, A, ...) by name.
            anchors: boxes (A, 4) of each image, in pixels of the resized image.
            matched_idxs: object of each anchor (A,) int64 of each image; -1 for none, -2 between the thresholds.
        """
        images = zip(targets, anchors, matched_idxs, strict=True)
        parts = [self._image(*image, number) for number, image in enumerate(images)]
        *columns, truth = (torch.cat(column) for column in zip(*parts, strict=True))
        boxes, numbers, labels, deltas, ious = columns
        rois = RoIs(boxes, numbers, labels, deltas, ious, len(parts))
        outputs = {name: output.flatten(0, 1) for name, output in head_outputs.items()}

        def ranking(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
            with torch.no_grad():
                losses = self.anchor_losses(outputs, rois, truth)
            torch.clear_autocast_cache()  # The user's own loss may have weights: see `read_only`.
            classification = losses.pop("classification")
            return weighted((classification, torch.stack([*losses.values()]).sum(dim=0)), cls_weight, box_weight)

        chosen = self.sampler(rois, ranking)
        chosen_outputs = {name: output[chosen] for name, output in outputs.items()}
        divisor = self.divisor(rois)[rois.images[chosen]] if self.loss == "builtin" else max(len(chosen), 1)
        losses = self.anchor_losses(chosen_outputs, rois[chosen], truth[chosen])
        return {name: (values / divisor).sum() for name, values in losses.items()}

    @abstractmethod
    def anchor_losses(self, outputs: Outputs, rois: RoIs, truth: Tensor) -> dict[str, Tensor]:
        """Computes the losses (R,) of R anchors, float32, by torchvision's names. They are not divided by any number.

        Args:
            outputs: outputs of the head for the anchors, (R, ...) by name.
            rois: the anchors.
            truth: boxes of the objects of the anchors, (R, 4), in pixels; zero for anchors that are not foreground.
        """

    @abstractmethod
    def encode(self, truth: Tensor, anchors: Tensor) -> Tensor:
        """Returns the regression targets (R, 4) that move `anchors` (R, 4) to the boxes `truth` (R, 4)."""

    def divisor(self, rois: RoIs) -> Tensor:
        """Returns the divisor of the losses of each image, (N,): the number of foreground anchors of the mini-batch."""
        return rois.foreground.sum().clamp(min=1).expand(rois.num_images)

    def _image(self, target: Mapping[str, Tensor], anchors: Tensor, matched: Tensor, number: int) -> tuple[Tensor, ...]:
        """Returns the columns of the RoIs of image `number`, and the boxes of their objects (A, 4)."""
        # Under autocast, torchvision makes anchors in half precision.
        anchors, objects = anchors.float(), target["boxes"].float()
        ignore = ignored(target)
        foreground = matched >= 0
        own = matched[foreground]
        labels = torch.full_like(matched, BACKGROUND)
        if self.between_thresholds is not None:
            labels[matched == self.between_thresholds] = IGNORE
        labels[foreground] = torch.where(ignore, IGNORE, target["labels"].long() - self.first_class + 1)[own]
        if ignore.any():
            labels[(labels == BACKGROUND) & covers(anchors, objects[ignore])] = IGNORE
        truth, deltas = torch.zeros_like(anchors), torch.zeros_like(anchors)
        truth[foreground] = objects[own]
        deltas[foreground] = self.encode(objects[own], anchors[foreground])
        ious, _ = highest_iou(anchors, objects[~ignore])
        return anchors, torch.full_like(matched, number), labels, deltas, ious, truth


def scatter_foreground(rois: RoIs, values: Tensor) -> Tensor:
    """Returns `values` (F,) of the F foreground RoIs at their positions among all (R,), with gradient; 0 elsewhere."""
    return values.new_zeros(len(rois)).masked_scatter(rois.foreground, values)


def check_unreduced(values: object, like: Tensor, name: str) -> Tensor:
    """Returns `values`, the result of the loss `name`, which the user may have replaced, with `reduction="none"`.

    Raises:
        TypeError: `values` is not a tensor of the shape of `like`.
    """
    if not isinstance(values, Tensor) or values.shape != like.shape:
        raise TypeError(
            f'with_ohem calls {name} with reduction="none", which must give a loss of shape {tuple(like.shape)}, '
            f"not {describe(values)}: make yours do so, or put torchvision's back"
        )
    return values


def mine_in_head(model: Any, mined: MinedLoss, check_parts: Callable[[Any, Loss], None]) -> None:
    """Replaces the `compute_loss` of the model's head by `mined`, and checks the model at every step.

    Args:
        model: a RetinaNet or FCOS, or a model with such a head.
        mined: the loss of the model.
        check_parts: function that raises `TypeError` if the model does not compute its losses as torchvision's does.
            It must be picklable.
    """
    check_parts(model, mined.loss)
    model.head.compute_loss = mined
    guard(model, partial(_check_step, check_parts), mined.first_class, _num_classes)


def _check_step(check_parts: Callable[[Any, Loss], None], model: Any) -> None:
    check_parts(model, mined_loss(model.head).loss)


def _num_classes(model: Any) -> int | None:
    return getattr(model.head.classification_head, "num_classes", None)


def mined_loss(part: nn.Module) -> MinedLoss:
    """Returns the `MinedLoss` that is the `compute_loss` of `part`, the model or its head, after `with_ohem`.

    Raises:
        TypeError: `compute_loss` was replaced since.
    """
    mined = vars(part).get("compute_loss")
    if not isinstance(mined, MinedLoss):
        raise TypeError(
            f"the compute_loss of {type(part).__name__} was replaced after with_ohem, and nothing would be mined: call "
            "with_ohem again on the model as it is now, and do not replace compute_loss afterwards"
        )
    return mined
