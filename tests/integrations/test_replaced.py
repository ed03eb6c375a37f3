"""A part of torchvision's detector that the user replaced is used, in ranking and training, or is refused.

Each case replaces a part in two equal models, one of which mines all RoIs. Either their losses agree, and differ from
those without the replacement, or `with_ohem`, or the first step after it, raises `TypeError`.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import _utils, fcos, retinanet, roi_heads, rpn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD

from ohem import AllSampler, OHEMSampler, with_ohem
from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from tests.helpers import one_stage, tiny_rcnn

Replace = Callable[[Any, pytest.MonkeyPatch], None]
REFUSED = "refused"
USED = "used"


class Case(NamedTuple):
    """A replacement in a kind of model, and what must happen: `USED` or `REFUSED`."""

    kind: str
    replace: Replace
    expected: str


def make_rcnn(**options: Any) -> Any:
    """Makes a Faster R-CNN whose random sampling leaves nothing out."""
    rpn_options = {"rpn_batch_size_per_image": 4000, "rpn_positive_fraction": 0.5}
    return tiny_rcnn.faster_rcnn(
        box_batch_size_per_image=4000, box_positive_fraction=0.5, **rpn_options, **options
    ).train()


MAKE: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("rcnn", "rpn"), make_rcnn),
    **{kind: functools.partial(one_stage.make, kind) for kind in one_stage.MAKE},
}
BATCH: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("rcnn", "rpn"), tiny_rcnn.mini_batch),
    **dict.fromkeys(one_stage.MAKE, lambda: one_stage.batch("two images")),
}


def method(part: Callable[[Any], Any], name: str, change: Callable[[Any], Any]) -> Replace:
    """Replaces a method on the instance by one that calls it and changes its result."""

    def replace(model: Any, _: pytest.MonkeyPatch) -> None:
        holder = part(model)
        original = getattr(holder, name)
        setattr(holder, name, types.MethodType(lambda self, *a, **k: change(original(*a, **k)), holder))

    return replace


def of_the_module(module: Any, name: str, make: Callable[[Any], Any]) -> Replace:
    return lambda _, patch: patch.setattr(module, name, make(getattr(module, name)))


def of_the_class(kind: type, name: str, change: Callable[[Any], Any]) -> Replace:
    def replace(_: Any, patch: pytest.MonkeyPatch) -> None:
        original = getattr(kind, name)
        patch.setattr(kind, name, lambda self, *a, **k: change(original(self, *a, **k)))

    return replace


def attribute(part: Callable[[Any], Any], name: str, value: Callable[[Any], Any]) -> Replace:
    return lambda model, _: setattr(part(model), name, value(getattr(part(model), name)))


def subclass(part: Callable[[Any], Any], **methods: Any) -> Replace:
    def replace(model: Any, _: pytest.MonkeyPatch) -> None:
        holder = part(model)
        holder.__class__ = type("Mine", (type(holder),), methods)

    return replace


def doubled(losses: Any) -> Any:
    return {name: 2 * loss for name, loss in losses.items()} if isinstance(losses, dict) else 2 * losses


def heads(model: Any) -> Any:
    return model.roi_heads


def head(model: Any) -> Any:
    return model.head


def classification(model: Any) -> Any:
    return model.head.classification_head


def regression(model: Any) -> Any:
    return model.head.regression_head


def first_stage(model: Any) -> Any:
    return model.rpn


def half(result: Any) -> Any:
    """Halves the losses of an RPN, or the boxes that it matches."""
    first, second = result
    return first, [boxes / 2 for boxes in second] if isinstance(second, list) else second / 2


def sum_losses(logits: Tensor, deltas: Tensor, labels: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Returns two sums, as users write it. RoIs cannot be ranked by sums."""
    return functional.cross_entropy(logits, torch.cat(labels)), deltas.sum() * 0


def replace_matcher(matcher: Any) -> Any:
    return _utils.Matcher(0.7, 0.3)


class OtherHead(nn.Module):
    """Another box head with outputs of the same size."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.original(x)
        return 3 * hidden


class OtherRPNHead(OtherHead):
    """Another head of an RPN."""

    def forward(self, x: Any) -> Any:
        logits, deltas = self.original(x)
        return [3 * values for values in logits], deltas


CASES = {
    "rcnn: fastrcnn_loss of sums": Case(
        "rcnn", of_the_module(roi_heads, "fastrcnn_loss", lambda _: sum_losses), REFUSED
    ),
    "rcnn: subsample of the instance": Case("rcnn", method(heads, "subsample", list), REFUSED),
    "rcnn: select_training_samples of the instance": Case(
        "rcnn", method(heads, "select_training_samples", tuple), REFUSED
    ),
    "rcnn: select_training_samples of the class": Case(
        "rcnn", of_the_class(RoIHeads, "select_training_samples", tuple), REFUSED
    ),
    "rcnn: forward of the instance": Case("rcnn", method(heads, "forward", tuple), REFUSED),
    "rcnn: subclass": Case("rcnn", subclass(heads, subsample=lambda self, labels: labels), REFUSED),
    "rcnn: fg_bg_sampler": Case("rcnn", attribute(heads, "fg_bg_sampler", lambda _: lambda labels: labels), REFUSED),
    "rcnn: box_head": Case("rcnn", attribute(heads, "box_head", OtherHead), USED),
    "rcnn: proposal_matcher": Case("rcnn", attribute(heads, "proposal_matcher", replace_matcher), USED),
    "rcnn: box_coder": Case(
        "rcnn", attribute(heads, "box_coder", lambda _: _utils.BoxCoder((1.0, 1.0, 1.0, 1.0))), USED
    ),
    "rpn: compute_loss of the instance": Case("rpn", method(first_stage, "compute_loss", half), REFUSED),
    "rpn: compute_loss of the class": Case("rpn", of_the_class(RegionProposalNetwork, "compute_loss", half), REFUSED),
    "rpn: forward of the instance": Case("rpn", method(first_stage, "forward", tuple), REFUSED),
    "rpn: forward of the class": Case("rpn", of_the_class(RegionProposalNetwork, "forward", tuple), REFUSED),
    "rpn: subclass": Case("rpn", subclass(first_stage, compute_loss=lambda self, *a: a), REFUSED),
    "rpn: subclass with another matching": Case(
        "rpn", subclass(first_stage, assign_targets_to_anchors=lambda self, *a: a), REFUSED
    ),
    "rpn: fg_bg_sampler": Case(
        "rpn", attribute(first_stage, "fg_bg_sampler", lambda _: lambda labels: labels), REFUSED
    ),
    "rpn: F of the module": Case("rpn", of_the_module(rpn, "F", lambda f: types.SimpleNamespace(**vars(f))), REFUSED),
    "rpn: assign_targets_to_anchors of the instance": Case(
        "rpn", method(first_stage, "assign_targets_to_anchors", half), REFUSED
    ),
    "rpn: assign_targets_to_anchors of the class": Case(
        "rpn", of_the_class(RegionProposalNetwork, "assign_targets_to_anchors", half), USED
    ),
    "rpn: head": Case("rpn", attribute(first_stage, "head", OtherRPNHead), USED),
    "rpn: proposal_matcher": Case("rpn", attribute(first_stage, "proposal_matcher", replace_matcher), USED),
    "rpn: box_coder": Case(
        "rpn", attribute(first_stage, "box_coder", lambda _: _utils.BoxCoder((2.0, 2.0, 2.0, 2.0))), USED
    ),
    "retinanet: sigmoid_focal_loss": Case(
        "retinanet",
        of_the_module(retinanet, "sigmoid_focal_loss", lambda f: functools.partial(f, alpha=0.9, gamma=0.5)),
        USED,
    ),
    "retinanet: _loss_type": Case("retinanet", attribute(regression, "_loss_type", lambda _: "giou"), USED),
    "retinanet: proposal_matcher": Case("retinanet", attribute(lambda m: m, "proposal_matcher", replace_matcher), USED),
    "fcos: sigmoid_focal_loss": Case(
        "fcos", of_the_module(fcos, "sigmoid_focal_loss", lambda f: functools.partial(f, alpha=0.9)), USED
    ),
    "ssd: compute_loss of the instance": Case("ssd", method(lambda m: m, "compute_loss", doubled), REFUSED),
    "ssd: compute_loss of the class": Case("ssd", of_the_class(SSD, "compute_loss", doubled), REFUSED),
    "ssd: subclass": Case(
        "ssd", subclass(lambda m: m, compute_loss=lambda self, *a: doubled(SSD.compute_loss(self, *a))), REFUSED
    ),
    **{
        f"{kind}: compute_loss of the instance of the {place}": Case(
            kind, method(part, "compute_loss", doubled), REFUSED
        )
        for kind in ("retinanet", "fcos")
        for place, part in (("model", lambda m: m), ("head", head))
    },
    **{
        f"retinanet: compute_loss of the {place}": Case("retinanet", method(part, "compute_loss", doubled), REFUSED)
        for place, part in (("classification head", classification), ("regression head", regression))
    },
    **{
        f"retinanet: subclass of the {place}": Case(
            "retinanet", subclass(part, compute_loss=lambda self, *a: a[1]["cls_logits"].sum()), REFUSED
        )
        for place, part in (("head", head), ("classification head", classification))
    },
}


def losses_of(model: Any, kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    losses: dict[str, Tensor] = model(*BATCH[kind]())
    return {name: loss.detach() for name, loss in losses.items()}


OPTIONS: dict[str, dict[str, Any]] = {"rcnn": {}, "rpn": {"rpn_sampler": AllSampler()}}


def mined(model: Any, kind: str, sampler: Any = AllSampler()) -> Any:  # noqa: B008  frozen
    return with_ohem(model, sampler, **OPTIONS.get(kind, {"loss": "builtin"}))


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


@pytest.mark.parametrize("kind", ["rcnn", "rpn", "retinanet", "fcos"])
def test_all_sampler_gives_the_losses_of_torchvision(kind: str) -> None:
    plain, ours = losses_of(MAKE[kind](), kind), losses_of(mined(MAKE[kind](), kind), kind)
    assert plain.keys() == ours.keys()
    assert not differ(plain, ours)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after with_ohem"])
@pytest.mark.parametrize("name", CASES)
def test_replaced_part_is_used_or_refused(name: str, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, replace, expected = CASES[name]
    sampler = OHEMSampler(8, nms_iou=None) if "fastrcnn_loss" in name else AllSampler()
    original, plain, ours = (MAKE[kind]() for _ in range(3))
    original_losses = losses_of(original, kind)

    def install() -> None:
        mined(ours, kind, sampler)

    if expected == REFUSED:
        if late:
            install()
        with monkeypatch.context() as patched:
            replace(ours, patched)
            with pytest.raises(TypeError, match=r"with_ohem|replaced"):
                losses_of(ours, kind) if late else (install(), losses_of(ours, kind))
        return
    with monkeypatch.context() as patched:
        if late:
            install()
        replace(plain, patched)
        if ours is not plain and "sigmoid_focal_loss" not in name:
            replace(ours, patched)
        if not late:
            install()
        expected_losses, losses = losses_of(plain, kind), losses_of(ours, kind)
    assert not differ(expected_losses, losses)
    assert differ(expected_losses, original_losses)


def test_replaced_loss_per_roi_ranks_and_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the loss by one with class weights. RoIs of weight 0 are chosen only if there are no others."""
    weight = torch.tensor([0.0, 1.0, 1.0])

    def weighted(logits: Tensor, deltas: Tensor, labels: Any, targets: Any, reduction: str = "mean") -> Any:
        classes = functional.cross_entropy(logits, torch.cat(labels), weight=weight, reduction="none")
        boxes = torch.zeros_like(classes)
        return (classes, boxes) if reduction == "none" else (classes.mean(), boxes.mean())

    monkeypatch.setattr(roi_heads, "fastrcnn_loss", weighted)
    model = with_ohem(make_rcnn(), OHEMSampler(4, nms_iou=None))
    losses_of(model, "rcnn")
    rois, chosen = model.mining.rois, model.mining.chosen
    assert rois is not None
    assert rois.foreground[chosen].sum() == min(4, int(rois.foreground[rois.images == 0].sum())) + min(
        4, int(rois.foreground[rois.images == 1].sum())
    )


# --- autocast


def with_gradient(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def trained_in_bfloat16(model: Any, *batch: Any) -> set[str]:
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch)
    sum(losses.values()).backward()
    return with_gradient(model)


@pytest.mark.parametrize("kind", [*tiny_rcnn.MODELS, *one_stage.MAKE])
def test_ranking_under_autocast_removes_no_gradient(kind: str) -> None:
    """Before PyTorch 2.11, the weights that the ranking casts stay in the cache of autocast, without a gradient."""
    make = tiny_rcnn.MODELS.get(kind) or functools.partial(one_stage.make, kind)
    batch = tiny_rcnn.mini_batch() if kind in tiny_rcnn.MODELS else one_stage.batch("two images")
    expected = trained_in_bfloat16(make().train(), *batch)
    assert expected
    assert expected <= trained_in_bfloat16(with_ohem(make(), OHEMSampler(8)).train(), *batch)


def test_ranking_of_fast_rcnn_under_autocast_removes_no_gradient() -> None:
    model = FastRCNN(tiny(), 3, OHEMSampler(8)).train()
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    boxes = torch.tensor([[5.0, 5, 40, 40], [30, 20, 70, 60], [0, 0, 20, 20]])
    trained = trained_in_bfloat16(model, [image], [boxes], [{"boxes": boxes[:1], "labels": torch.tensor([1])}])
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_ranking_clears_the_cache_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[bool] = []
    original = torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (cleared.append(torch.is_grad_enabled()), original()))
    model = with_ohem(make_rcnn(), OHEMSampler(8))
    with torch.autocast("cpu", torch.bfloat16):
        model(*tiny_rcnn.mini_batch())
    assert cleared
