"""Mining in MONAI's RetinaNet, in 2-D and 3-D, compared with MONAI's own losses and samplers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ohem import AllSampler, OHEMSampler, RoIs, with_ohem
from ohem.samplers import Losses
from tests.helpers.contracts import EVERY_SAMPLER, check_detector
from tests.helpers.one_stage import NoneSampler, gradients
from tests.integrations.optional import import_quietly
from tests.integrations.optional.monai_models import BATCHES, batch, make, target

# MONAI converts the sizes of a list of images to NumPy in a way that NumPy will not take for ever.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
DIMS = pytest.mark.parametrize("dims", [2, 3])


def step(model: Any, images_and_targets: Any) -> dict[str, Tensor]:
    """Runs forward and backward, which leaves the gradients; returns the losses."""
    torch.manual_seed(0)
    model.zero_grad()
    losses: dict[str, Tensor] = model(*images_and_targets)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    return losses


def same_step(mined: Any, own: Any, images_and_targets: Callable[[], Any]) -> None:
    """Asserts that both give the same losses and gradients."""
    expected, actual = (step(model, images_and_targets()) for model in (own, mined))
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual, expected)
    # Without an object MONAI's box loss has no graph; the other one has a gradient of 0.
    none = {name: torch.zeros_like(gradient) for name, gradient in gradients(mined).items()}
    torch.testing.assert_close(gradients(mined), none | gradients(own))


@pytest.mark.parametrize(
    ("dims", "sampler"),
    [
        *(pytest.param(2, EVERY_SAMPLER[name], id=f"2-{name}") for name in ("release", "ratio")),
        *(pytest.param(3, EVERY_SAMPLER[name], id=f"3-{name}") for name in ("release", "hierarchical")),
    ],
)
def test_contract_of_a_detector(dims: int, sampler: Any) -> None:
    check_detector(partial(make, dims), sampler, {name: batch(name, dims) for name in BATCHES})


def set_losses(model: Any, kind: str) -> None:
    losses = import_quietly("monai.losses")
    if kind == "focal, GIoU":
        model.set_cls_loss(losses.FocalLoss(reduction="mean", gamma=2.0))
        model.set_box_regression_loss(losses.giou_loss.BoxGIoULoss(), encode_gt=False, decode_pred=True)
    elif kind == "sums":
        model.set_cls_loss(nn.BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor([1.0, 2.0, 3.0])))
        model.set_box_regression_loss(nn.L1Loss(reduction="sum"), encode_gt=True, decode_pred=False)


@DIMS
@pytest.mark.parametrize("kind", ["default", "focal, GIoU", "sums"])
def test_all_anchors_give_monais_loss(dims: int, kind: str) -> None:
    own, mined = make(dims), with_ohem(make(dims), AllSampler())
    for model in (own, mined):
        set_losses(model, kind)
    for name in BATCHES:
        same_step(mined, own, partial(batch, name, dims))


class TheirChoice:
    """Chooses what MONAI's hard negative sampler would, from the same scores and random numbers."""

    def __init__(self, model: Any) -> None:
        model.set_hard_negative_sampler(batch_size_per_image=40, positive_fraction=0.5, min_neg=4, pool_size=2)
        self.theirs = model.fg_bg_sampler
        model.network.register_forward_hook(self.remember)
        self.reshape = model._reshape_maps

    def remember(self, network: nn.Module, images: Any, outputs: Any) -> None:
        self.scores = self.reshape(outputs[network.cls_key]).detach().amax(dim=2)

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        offset, chosen = 0, []
        for scores in self.scores:
            masks = self.theirs([rois.labels[offset : offset + len(scores)]], scores)
            chosen += [offset + torch.where(torch.cat(mask))[0] for mask in masks]
            offset += len(scores)
        return torch.cat(chosen)


@DIMS
def test_monais_choice_gives_monais_loss(dims: int) -> None:
    own, mined = make(dims), make(dims)
    own.set_hard_negative_sampler(batch_size_per_image=40, positive_fraction=0.5, min_neg=4, pool_size=2)
    with_ohem(mined, TheirChoice(mined))
    same_step(mined, own, partial(batch, "two images", dims))
    numbers = mined.mining.statistics()
    assert numbers["chosen"] < numbers["rois"] / 2
    assert 0 < numbers["foreground"] <= 0.5


class WithLosses:
    """Chooses half of the hardest, and keeps both losses of every anchor."""

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        self.losses = losses(1.0, 0.0), losses(0.0, 1.0)
        assert torch.equal(losses(), sum(self.losses))
        return losses().argsort(descending=True)[: len(rois) // 2]


@DIMS
@pytest.mark.parametrize("kind", ["default", "focal, GIoU"])
def test_ranking_is_the_loss_that_is_trained(dims: int, kind: str) -> None:
    sampler = WithLosses()
    model = with_ohem(make(dims), sampler)
    set_losses(model, kind)
    trained = step(model, batch("two images", dims))
    rois, chosen = model.mining.rois, model.mining.chosen
    classification, boxes = (losses[chosen] for losses in sampler.losses)
    assert 0 < rois.foreground[chosen].sum() < len(chosen)
    assert (boxes[~rois.foreground[chosen]] == 0).all()
    torch.testing.assert_close(trained["classification"], classification.mean())
    torch.testing.assert_close(trained["box_regression"], boxes[rois.foreground[chosen]].mean())


@DIMS
def test_no_chosen_anchor_gives_a_loss_of_zero(dims: int) -> None:
    model = with_ohem(make(dims), NoneSampler())
    losses = step(model, batch("two images", dims))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


@DIMS
def test_ignored_objects_are_not_mined(dims: int) -> None:
    model = with_ohem(make(dims), AllSampler())
    images, targets = batch("two images", dims)
    targets[0]["ignore"] = torch.tensor([False, True])
    model(images, targets)
    rois, chosen = model.mining.rois, model.mining.chosen
    start, end = targets[0]["boxes"][1].split(dims)
    inside = (rois.boxes[:, :dims] >= start).all(dim=1) & (rois.boxes[:, dims:] <= end).all(dim=1)
    assert inside[rois.images == 0].any()
    assert (rois.labels[inside & (rois.images == 0)] == -1).all()
    assert set(rois.labels[rois.images == 0].tolist()) == {-1, 0, 1}
    assert len(chosen) == (rois.labels >= 0).sum()


def test_default_has_the_size_of_the_sampler_that_it_replaces() -> None:
    model = make()
    model.set_hard_negative_sampler(batch_size_per_image=10, positive_fraction=0.5)
    assert with_ohem(model).mining.sampler == OHEMSampler(10, nms_iou=None)
    assert with_ohem(make()).mining.sampler == OHEMSampler(256, nms_iou=None)


def test_another_name_of_the_boxes() -> None:
    model = with_ohem(make(), OHEMSampler(8))
    model.set_target_keys("box", "label")
    images, targets = batch("two images")
    renamed = [{"box": one["boxes"], "label": one["labels"]} for one in targets]
    assert step(model, (images, renamed)) == step(with_ohem(make(), OHEMSampler(8)), batch("two images"))


def refuse(model: Any, message: str, kind: type[Exception] = TypeError) -> None:
    """Asserts that a step raises the message, after `with_ohem`."""
    with pytest.raises(kind, match=message):
        model(*batch("two images"))


def test_sampler_that_is_set_later_is_refused() -> None:
    model = with_ohem(make(), OHEMSampler(8))
    model.set_balanced_sampler(8, 0.5)
    refuse(model, "BalancedPositiveNegativeSampler was set after with_ohem.*call with_ohem last")
    with_ohem(model, OHEMSampler(8))(*batch("two images"))


def test_loss_without_reduction_is_refused() -> None:
    model = with_ohem(make(), OHEMSampler(8))
    model.set_cls_loss(nn.Identity())
    refuse(model, "needs a cls_loss_func whose reduction is")
    with pytest.raises(TypeError, match="needs a cls_loss_func whose reduction is"):
        with_ohem(model)


class OneNumber(nn.BCEWithLogitsLoss):
    """Ignores its reduction."""

    def forward(self, given: Tensor, wanted: Tensor) -> Tensor:
        return super().forward(given, wanted).mean()


def test_loss_that_ignores_reduction_is_refused() -> None:
    model = with_ohem(make(), OHEMSampler(8))
    model.set_cls_loss(OneNumber())
    refuse(model, 'calls cls_loss_func with reduction="none", which must give a loss for each of [0-9]+ anchors')


@pytest.mark.parametrize("name", ["compute_cls_loss", "compute_loss"])
def test_replaced_method_is_refused(name: str) -> None:
    model = with_ohem(make(), OHEMSampler(8))
    kind = type(model)
    model.__class__ = type("Own", (kind,), {name: lambda *_: {}})
    if name == "compute_cls_loss":
        refuse(model, "would not use the compute_cls_loss of this Own")
    with pytest.raises(TypeError, match=f"would not use the {name} of this Own"):
        with_ohem(model)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_is_refused(label: int) -> None:
    model = with_ohem(make(), OHEMSampler(8))
    targets = [target((1, 6), dims=2, labels=[label])]
    with pytest.raises(ValueError, match="from 0 to 2"):
        model(batch("two images")[0][:1], targets)


def test_ignored_anchor_that_is_chosen_is_refused() -> None:
    model = with_ohem(make(), lambda rois, losses: torch.arange(len(rois)))
    refuse(model, "chose ignored anchors", ValueError)
