"""The criterion of ultralytics, computed for the anchors that a sampler chooses.

Their own code computes the losses, twice in each step. The first pass, without gradient, gives the loss of every
anchor. In the second one, the anchors that are not chosen have no loss. The assigner, the most expensive part, runs
once.

The RoIs are the anchors. Their boxes are the predicted boxes, which the criterion scores, in pixels of the network's
input. The label is 1 + the class of the object that their assigner gave to the anchor, 0 for background. The loss of
the ranking is that of the anchor in their total, with its gains (`box`, `cls`, `dfl`) and weights, but not divided by
the sum of the target scores. That divisor is still that of all anchors in the loss that is trained.

Shapes: N: images   A: anchors of an image   R: N x A anchors of the mini-batch   C: classes   G: objects of an image
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import loss as originals
from ultralytics.utils.loss import BboxLoss, E2ELoss, v8DetectionLoss

from ohem.checks import describe
from ohem.integrations.parts import is_original
from ohem.losses import weighted
from ohem.recorder import Recorder
from ohem.rois import BACKGROUND, RoIs, highest_iou
from ohem.samplers import RoISampler

# The method of their criterion that computes the losses, and the parts that it calls.
METHOD = "get_assigned_targets_and_loss"
PARTS = ("assigner", "bce", "bbox_loss")


@contextmanager
def mined(criterion: Any, recorder: Recorder) -> Iterator[None]:
    """Makes `criterion` compute the loss of the chosen anchors, until the context ends.

    Args:
        criterion: their criterion: that of one head, or of two (`E2ELoss`), which are both mined.
        recorder: chooses the anchors. Of two heads, it records the choice for the one that needs no NMS, whose losses
            ultralytics reports.

    Raises:
        TypeError: the criterion does not compute its losses as those of ultralytics do.
    """
    samplers: dict[Any, RoISampler] = {criterion: recorder}
    if isinstance(criterion, E2ELoss):
        _check_methods(criterion, E2ELoss, "__call__")
        samplers = {criterion.one2many: Recorder(recorder.sampler), criterion.one2one: recorder}
    with ExitStack() as changes:
        for head, sampler in samplers.items():
            _check_methods(head, v8DetectionLoss, "__call__", "loss", METHOD)
            _check_methods(head.bbox_loss, BboxLoss, "forward")
            setattr(head, METHOD, partial(_compute, head, sampler))
            changes.callback(delattr, head, METHOD)
        yield


def _check_methods(part: Any, kind: type, *names: str) -> None:
    """Raises `TypeError` if a method of `part` is not that of ultralytics' `kind`."""
    for name in names:
        if not is_original(getattr(type(part), name, None), originals, name) or name in vars(part):
            raise TypeError(
                f"with_ohem cannot see the losses of single anchors in {type(part).__name__}, whose {name} is not that "
                f"of ultralytics' {kind.__name__}: use the latter"
            )
        if getattr(type(part), name) is not getattr(kind, name):
            raise TypeError(
                f"with_ohem mines the {kind.__name__} of ultralytics, and not {type(part).__name__}: give it a model "
                "that detects boxes (task detect)"
            )


class _Call:
    """Calls a part of the criterion, and remembers the arguments and the result."""

    arguments: dict[str, Any] | None = None
    result: Any = None

    def __init__(self, part: Callable[..., Any]) -> None:
        self.part = part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.arguments = _named(self.part, args, kwargs)
        self.result = self.part(*args, **kwargs)
        return self.result


def _named(part: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a call of `part` by their names."""
    return dict(inspect.signature(getattr(part, "forward", part)).bind(*args, **kwargs).arguments)


def _compute(criterion: Any, sampler: RoISampler, preds: Any, batch: Any, **options: Any) -> Any:
    """Returns what their method returns, with the losses of the anchors that `sampler` chooses."""
    compute = getattr(type(criterion), METHOD)
    calls = {name: _Call(getattr(criterion, name)) for name in PARTS}
    with torch.no_grad():
        compute(_with_parts(criterion, calls), preds, batch, **options)
    torch.clear_autocast_cache()  # The user's own loss may have weights: see `read_only`.
    assigner, bce, bbox_loss = (calls[name] for name in PARTS)
    if assigner.arguments is None or not isinstance(bce.result, Tensor):
        raise _other_version()
    labels, foreground = assigner.result[0], assigner.result[3].bool()
    # Early versions of 8.4 do not call it without foreground.
    if bbox_loss.arguments is None and foreground.any():
        raise _other_version()
    if bce.result.shape[:2] != foreground.shape:
        raise TypeError(
            f"with_ohem needs a bce with the loss of each anchor and class, {(*foreground.shape, criterion.nc)}, and "
            f'it returned {describe(bce.result)}: make yours with reduction="none"'
        )
    boxes, objects = assigner.arguments["pd_bboxes"], assigner.arguments["gt_bboxes"]
    rois = _rois(boxes, torch.where(foreground, labels.long() + 1, BACKGROUND), objects)
    chosen = sampler(rois, partial(_losses, criterion.hyp, bce.result, bbox_loss))
    kept = torch.zeros_like(rois.labels, dtype=torch.bool)
    kept[chosen] = True
    kept = kept.view_as(foreground)

    def bce_of_chosen(*args: Any, **kwargs: Any) -> Tensor:
        return torch.where(kept[..., None], bce.part(*args, **kwargs), 0)

    def bbox_loss_of_chosen(*args: Any, **kwargs: Any) -> Any:
        return bbox_loss.part(**{**_named(bbox_loss.part, args, kwargs), "fg_mask": foreground & kept})

    parts = {"assigner": lambda *_, **__: assigner.result, "bce": bce_of_chosen, "bbox_loss": bbox_loss_of_chosen}
    return compute(_with_parts(criterion, parts), preds, batch, **options)


def _other_version() -> TypeError:
    return TypeError(f"{METHOD} of this version of ultralytics does not call {', '.join(PARTS)}: mining needs them")


def _with_parts(criterion: Any, parts: dict[str, Any]) -> Any:
    """Returns a shallow copy of `criterion` with other `parts`."""
    changed = copy.copy(criterion)
    vars(changed).update(parts)
    return changed


def _rois(boxes: Tensor, labels: Tensor, objects: Tensor) -> RoIs:
    """Returns the anchors as RoIs, from their boxes (N, A, 4), labels (N, A) and objects (N, G, 4), padded with 0."""
    # If the network diverges, ultralytics recovers from its last checkpoint: mining must not raise before.
    boxes = boxes.float().nan_to_num()
    # A box without an area has no IoU with the padding.
    ious = torch.cat([highest_iou(*image)[0] for image in zip(boxes, objects.float(), strict=True)]).nan_to_num()
    images = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    targets = torch.zeros_like(boxes)  # Their loss has no regression targets of single anchors.
    return RoIs(boxes.flatten(0, 1), images, labels.flatten(), targets.flatten(0, 1), ious, len(boxes))


def _losses(hyp: Any, bce: Tensor, bbox_loss: _Call, cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
    """Computes the losses (R,) of all anchors, from the cross entropy `bce` (N, A, C), which has the class weights."""
    classification = bce.float().sum(dim=2) * hyp.cls
    boxes = torch.zeros_like(classification)
    if bbox_loss.arguments is not None:
        # Their box losses are sums over the foreground, weighted with the target scores: the loss of an anchor is the
        # derivative with respect to its weight.
        weights = torch.ones_like(boxes).requires_grad_()
        with torch.enable_grad():
            scores = bbox_loss.arguments["target_scores"] * weights[..., None]
            changes = {"target_scores": scores, "target_scores_sum": 1}
            box, distribution = bbox_loss.part(**{**bbox_loss.arguments, **changes})
            total = box * hyp.box + distribution * hyp.dfl
        [boxes] = torch.autograd.grad(total, weights, materialize_grads=True)
    return weighted((classification.flatten(), boxes.flatten()), cls_weight, box_weight)
