"""Detectors of transformers whose queries are matched one to one: RT-DETR, D-FINE, Deformable DETR and their kin.

A RoI is a query of a decoder layer, with the box that the layer predicts. Its label is one more than the class of the
object that the model's own Hungarian matching gives it, and 0 without an object. Its loss, for the ranking, is the
weighted sum of its classification loss over the classes and, if it has an object, of the L1 and GIoU losses of its box.

Each decoder layer, and the selection of queries in the encoder, mines among its own queries. A query that is not chosen
has no classification loss and no box loss. The divisor stays theirs, the number of objects, so that with all queries
the loss is theirs, bit for bit. Denoising queries are trained as ever. So is D-FINE's distillation between layers.

Their criterion computes everything: mining reads the losses of single queries where it takes the mean over them.

Shapes: N: images   Q: queries of an image   R: N x Q   K: classes   G: objects of an image
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import PreTrainedModel
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
from transformers.loss.loss_utils import LOSS_MAPPING

from ohem.integrations.registry import with_ohem
from ohem.losses import weighted
from ohem.recorder import Recorder
from ohem.rois import BACKGROUND, IGNORE, RoIs, covers, highest_iou
from ohem.samplers import RatioSampler
from ohem.targets import ignored

Label = Mapping[str, Any]
"""Target of an image: `class_labels` (G,) and `boxes` (G, 4), centre, width and height as shares of the image."""
Loss = Callable[..., Any]


@dataclass(frozen=True)
class Criterion:
    """How a loss function of transformers computes its losses.

    Args:
        name: class of the criterion that the function makes.
        classification: name of the classification loss in the criterion.
        weights: attributes of the configuration with the weights of classification, L1 and GIoU; None for 1.
    """

    name: str
    classification: str
    weights: tuple[str | None, str, str]


_WEIGHTS = "weight_loss_vfl", "weight_loss_bbox", "weight_loss_giou"
CRITERIA: dict[Loss, Criterion] = {
    RTDetrForObjectDetectionLoss: Criterion("RTDetrLoss", "vfl", _WEIGHTS),
    DFineForObjectDetectionLoss: Criterion("DFineLoss", "vfl", _WEIGHTS),
    DeformableDetrForObjectDetectionLoss: Criterion(
        "DeformableDetrImageLoss", "labels", (None, "bbox_loss_coefficient", "giou_loss_coefficient")
    ),
}
"""Loss function of transformers -> its criterion."""


# Before, the loss of the last layer contained the denoising queries too (transformers' pull request 48528).
OLDEST = 5, 18


class MinedLoss:
    """Replaces the `loss_function` of a model of transformers in train mode. It is copied and pickled with the model.

    It is not a module, so that the state dict and the files of `save_pretrained` stay the same.
    """

    def __init__(self, model: Any, sampler: Recorder) -> None:
        self.model, self.sampler = model, sampler
        self.original: Loss = model.loss_function
        self.size = (1, 1)
        """Height and width of the images of the mini-batch, padding included, in pixels."""

    # The matching runs on the CPU in any case.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, logits: Tensor, labels: Sequence[Label], *args: Any, **kwargs: Any) -> Any:
        """Returns the loss, its parts and the auxiliary outputs, as the model's own loss function does."""
        if not self.model.training:
            return self.original(logits, labels, *args, **kwargs)
        kind = CRITERIA[self.original]
        make = partial(self._criterion, self.original.__globals__[kind.name], [_regions(label) for label in labels])
        mined = _with_globals(self.original, {kind.name: make})
        return mined(logits, [_without_ignored(label) for label in labels], *args, **kwargs)

    def _criterion(self, make: Callable[..., nn.Module], regions: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Returns the criterion that `make` makes, with mining."""
        criterion: Any = make(*args, **kwargs)
        criterion.matcher.register_forward_hook(lambda _, inputs, pairs: Matching(pairs))
        height, width = self.size
        kind, config = CRITERIA[self.original], self.model.config
        weights = [1.0 if name is None else float(getattr(config, name)) for name in kind.weights]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        criterion.get_loss = MinedGetLoss(criterion.get_loss, kind, weights, self.sampler, scale, regions)
        return criterion


class Matching(list[tuple[Tensor, Tensor]]):
    """Indices of the queries and of their objects, of each image, as the matcher returns them for a layer."""

    chosen: Tensor | None = None
    """(N, Q) bool: the queries that the sampler chose; None until it has."""


class MinedGetLoss:
    """Replaces the method `get_loss` of a criterion, which computes a loss of a layer.

    Args:
        original: the method.
        kind: the kind of criterion.
        weights: weights of classification, L1 and GIoU in the loss of the model.
        sampler: chooses the queries.
        scale: width, height, width and height of the images in pixels, (4,).
        regions: boxes to ignore of each image, as shares of the image.
    """

    def __init__(
        self,
        original: Loss,
        kind: Criterion,
        weights: Sequence[float],
        sampler: Recorder,
        scale: Tensor,
        regions: Sequence[Tensor],
    ) -> None:
        self.original, self.kind, self.weights = original, kind, weights
        self.sampler, self.scale, self.regions = sampler, scale, regions

    def __call__(
        self,
        loss: str,
        outputs: Mapping[str, Any],
        targets: Sequence[Label],
        indices: Sequence[tuple[Tensor, Tensor]],
        num_boxes: float,
    ) -> dict[str, Tensor]:
        """Returns the losses of the chosen queries of a layer by name; of all denoising queries."""
        compute = partial(self.original, loss, outputs, targets)
        if not isinstance(indices, Matching):
            return compute(indices, num_boxes)  # type: ignore[no-any-return]
        if loss == self.kind.classification:
            with _Choose(outputs["logits"].shape, partial(self._choose, outputs, targets, indices)):
                losses: dict[str, Tensor] = compute(indices, num_boxes)
        if indices.chosen is None:
            raise TypeError(
                f"with_ohem cannot see the losses of single queries in {self.kind.name} of this version of "
                "transformers: install transformers 5.24, or a later ohem"
            )
        if loss == self.kind.classification:
            return losses
        chosen = indices.chosen.cpu()
        kept = [
            (query[mask[query]], object_[mask[query]]) for (query, object_), mask in zip(indices, chosen, strict=True)
        ]
        losses = compute(kept, num_boxes)
        if "loss_ddf" in losses and any(len(a) < len(b) for (a, _), (b, _) in zip(kept, indices, strict=True)):
            # Distillation trains every query on the boxes of the last layer, chosen or not.
            losses["loss_ddf"] = compute(indices, num_boxes)["loss_ddf"]
        return losses

    def _choose(
        self, outputs: Mapping[str, Any], targets: Sequence[Label], indices: Matching, classification: Tensor
    ) -> Tensor:
        """Returns which queries the sampler chooses, (N, Q) bool. `classification` are losses (N, Q, K)."""
        rois, boxes = self._layer(outputs, targets, indices, classification)

        def losses(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
            return weighted(
                (self.weights[0] * classification.float().sum(dim=2).flatten(), boxes), cls_weight, box_weight
            )

        indices.chosen = torch.zeros(len(rois), dtype=torch.bool, device=rois.boxes.device)
        indices.chosen[self.sampler(rois, losses)] = True
        # The criterion begins with the last decoder layer, which is recorded. The others use the sampler alone.
        self.sampler = Recorder(self.sampler.sampler)
        indices.chosen = indices.chosen.view(classification.shape[:2])
        return indices.chosen

    def _layer(
        self, outputs: Mapping[str, Any], targets: Sequence[Label], indices: Matching, classification: Tensor
    ) -> tuple[RoIs, Tensor]:
        """Returns the queries of a layer and their box losses (R,), weighted; 0 without an object."""
        predicted = outputs["pred_boxes"].detach().float()
        corners = box_convert(predicted, "cxcywh", "xyxy")
        labels = torch.full(predicted.shape[:2], BACKGROUND, device=predicted.device)
        losses, ious = (torch.zeros_like(labels, dtype=torch.float32) for _ in range(2))
        images = zip(indices, targets, self.regions, strict=True)
        for n, ((query, object_), target, regions) in enumerate(images):
            truth = target["boxes"].float()
            truth_corners = box_convert(truth, "cxcywh", "xyxy")
            labels[n, covers(corners[n], regions)] = IGNORE
            labels[n, query] = target["class_labels"][object_] + 1
            l1 = (predicted[n, query] - truth[object_]).abs().sum(dim=1)
            giou = generalized_box_iou_loss(corners[n, query], truth_corners[object_], reduction="none")
            losses[n, query] = self.weights[1] * l1 + self.weights[2] * giou
            ious[n], _ = highest_iou(corners[n], truth_corners)
        count, queries = labels.shape
        numbers = torch.arange(count, device=labels.device).repeat_interleave(queries)
        boxes = (corners * self.scale.to(corners.device)).flatten(0, 1)
        rois = RoIs(boxes, numbers, labels.flatten(), torch.zeros_like(boxes), ious.flatten(), count)
        return rois, losses.flatten()


class _Choose(TorchFunctionMode):
    """In this context, a mean of losses (N, Q, K) over the queries has 0 in place of the losses of those not chosen.

    Args:
        shape: (N, Q, K).
        choose: function of losses (N, Q, K) that returns which queries are chosen, (N, Q) bool.
    """

    def __init__(self, shape: torch.Size, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape, self.choose = shape, choose

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.mean or args[0].shape != self.shape or args[1:] != (1,):
            return func(*args, **(kwargs or {}))
        chosen = self.choose(args[0].detach())
        mean: Tensor = torch.where(chosen[..., None], args[0], 0).mean(1)
        return mean


class ReadInputs:
    """A forward pre-hook of `model.model`: it reads the size of the images, and takes out the objects to ignore.

    It is not a hook of the whole model, because wrappers such as those of PEFT do not run the hooks of that.
    """

    def __init__(self, mined: MinedLoss) -> None:
        self.mined = mined

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the arguments of `model.model`, without the objects to ignore; None in eval mode."""
        model = self.mined.model
        if not model.training:
            return None
        if model.loss_function is not self.mined:
            raise TypeError(
                f"the loss_function of {type(model).__name__} was replaced after with_ohem, and nothing would be "
                "mined: do not replace it"
            )
        height, width = (args[0] if args else kwargs["pixel_values"]).shape[-2:]
        self.mined.size = int(height), int(width)
        if kwargs.get("labels") is not None:  # for the denoising queries
            kwargs = {**kwargs, "labels": [_without_ignored(label) for label in kwargs["labels"]]}
        return args, kwargs


def _without_ignored(label: Label) -> Label:
    kept = ~ignored(label)
    return label if kept.all() else {**label, **{key: label[key][kept] for key in ("boxes", "class_labels")}}


def _regions(label: Label) -> Tensor:
    """Returns the boxes to ignore of an image, corners as shares of the image."""
    corners: Tensor = box_convert(label["boxes"][ignored(label)].float(), "cxcywh", "xyxy")
    return corners


def _with_globals(function: Loss, names: Mapping[str, Any]) -> Loss:
    """Returns a copy of `function` in which the global `names` have other values. Nothing else changes."""
    code, defaults = function.__code__, function.__defaults__
    copy = FunctionType(code, {**function.__globals__, **names}, function.__name__, defaults)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _check(model: Any) -> None:
    """Raises `TypeError` if the loss function of `model` is not one of `CRITERIA`, or if transformers is too old."""
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
        raise TypeError(
            f"with_ohem cannot mine with transformers {transformers.__version__}, whose loss does not separate the "
            "denoising queries: install transformers 5.18 or later"
        )
    name, usual, own = type(model).__name__, LOSS_MAPPING.get(model.loss_type), vars(model).get("_loss_function")
    known = ", ".join(sorted(kind for kind, loss in LOSS_MAPPING.items() if loss in CRITERIA))
    if usual is ForObjectDetectionLoss:
        raise TypeError(
            f"with_ohem cannot mine in {name}, whose cross entropy is averaged over all queries at once: use {known}"
        )
    if usual not in CRITERIA:
        raise TypeError(
            f"with_ohem knows the loss functions of {known} of transformers, and not that of {name}: use one of these, "
            f"or say how to mine with with_ohem.register({name})"
        )
    if own is not None and own is not usual:
        raise TypeError(
            f"with_ohem would not use the loss_function of this {name}, which was replaced: put transformers' back, or "
            "say how to mine with yours with with_ohem.register"
        )


# An object has a single query in a layer, so all of these are kept. NMS would remove the other queries near the object,
# whose scores the loss must lower.
@with_ohem.register(PreTrainedModel, default=lambda _: RatioSampler())
def _install(model: Any, sampler: Recorder) -> None:
    mined = vars(model).get("_loss_function")
    if isinstance(mined, MinedLoss):
        mined.sampler = sampler
        return
    _check(model)
    model.loss_function = MinedLoss(model, sampler)
    model.model.register_forward_pre_hook(ReadInputs(model.loss_function), with_kwargs=True)
