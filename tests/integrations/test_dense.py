"""Mining in torchvision's one-stage detectors: losses and gradients, compared with those of torchvision."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from ohem import AllSampler, OHEMSampler, RandomSampler, RatioSampler, with_ohem
from tests.helpers.one_stage import BATCHES, MAKE, NoneSampler, batch, gradients, make, step

SAMPLERS = {
    "default": None,
    "all": AllSampler(),
    "random": RandomSampler(16, fg_iou=0.0),
    "ohem": OHEMSampler(8, nms_iou=None),
    "ohem with NMS": OHEMSampler(8),
    "ohem of the batch": OHEMSampler(8, per_image=False, nms_iou=None),
    "ratio": RatioSampler(),
    "none": NoneSampler(),
}
KINDS = pytest.mark.parametrize("kind", MAKE)
LOSSES = pytest.mark.parametrize("loss", ["builtin", "cross_entropy"])


def same_step(mined: Any, own: Any, name: str) -> None:
    """Asserts that both give the same losses and gradients for the mini-batch `name`."""
    expected, actual = step(own, name), step(mined, name)
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(mined), gradients(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("name", BATCHES)
def test_loss_of_all_anchors_is_torchvisions(kind: str, name: str) -> None:
    same_step(with_ohem(make(kind), AllSampler()), make(kind), name)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "diou", "ciou"])
def test_every_box_loss_of_retinanet(box_loss: str) -> None:
    own, mined = make("retinanet"), make("retinanet")
    for model in (own, mined):
        model.head.regression_head._loss_type = box_loss
    same_step(with_ohem(mined, AllSampler()), own, "two images")


@pytest.mark.parametrize("name", ["two images", "many objects", "the same object twice"])
@pytest.mark.parametrize("fraction", [0.25, 0.3])
def test_default_of_ssd_mines_as_torchvision(name: str, fraction: float) -> None:
    own, mined = (make("ssd", positive_fraction=fraction) for _ in range(2))
    same_step(with_ohem(mined), own, name)
    assert mined.mining.statistics()["foreground"] == pytest.approx(fraction, abs=0.02)


def test_default_of_ssdlite_mines_as_torchvision() -> None:
    torch.manual_seed(0)
    own = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).train()
    same_step(with_ohem(copy.deepcopy(own)), own, "two images")


def test_ssd_does_not_count_positives_twice_if_negatives_are_scarce() -> None:
    """torchvision's does. All anchors that touch the object are positive, and too few others are left for the ratio."""
    own, mined = (make("ssd", iou_thresh=1e-6) for _ in range(2))
    theirs, ours = step(own, "one object")["classification"], step(with_ohem(mined), "one object")["classification"]
    rois, losses = mined.mining.rois, mined.mining.losses
    first = rois.images == 0
    positives, negatives = (int((first & mask).sum()) for mask in (rois.foreground, ~rois.foreground))
    assert 3 * positives > negatives > 0
    classification = per_anchor_cross_entropy(mined, "one object")
    total, missing = classification[first].sum(), 3 * positives - negatives
    counted_twice = classification[first & rois.foreground]
    assert missing >= positives, "torchvision must count all positives twice, or their order matters"
    torch.testing.assert_close(theirs, (total + counted_twice.sum()) / positives)
    hardest = classification[~first].sort(descending=True).values[:3]
    torch.testing.assert_close(ours, (total + hardest.sum()) / positives)
    torch.testing.assert_close(losses[~first], classification[~first])


def test_ssd_trains_on_images_without_an_object() -> None:
    own, mined = make("ssd"), with_ohem(make("ssd"))
    assert step(own, "no object")["classification"] == 0
    hardest = per_anchor_cross_entropy(mined, "no object").view(2, -1).topk(3).values
    torch.testing.assert_close(step(mined, "no object")["classification"], hardest.sum())


@pytest.mark.parametrize("name", ["no object", "one object"])
def test_loss_of_ssd_is_a_mean_if_the_number_of_anchors_is_fixed(name: str) -> None:
    mined = with_ohem(make("ssd"), OHEMSampler(8, nms_iou=None))
    losses = step(mined, name)
    torch.testing.assert_close(sum(losses.values()), mined.mining.losses[mined.mining.chosen].mean())


def per_anchor_cross_entropy(model: Any, name: str) -> Tensor:
    """Computes the classification loss (R,) of an SSD from the outputs of its head. `model.mining` has the labels."""
    outputs = head_outputs(model, name)
    labels = model.mining.rois.labels
    return functional.cross_entropy(outputs["cls_logits"].detach().flatten(0, 1), labels, reduction="none")


def head_outputs(model: Any, name: str) -> dict[str, Tensor]:
    """Returns the outputs of the head for the mini-batch `name`, which have the gradient of the losses."""
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, outputs: dict[str, Tensor]) -> None:
        kept.update(outputs)
        for output in outputs.values():
            output.retain_grad()

    handle = model.head.register_forward_hook(keep)
    step(model, name)
    handle.remove()
    return kept


@KINDS
@pytest.mark.parametrize(
    "sampler", [OHEMSampler(8, nms_iou=None), OHEMSampler(8), RatioSampler(), RandomSampler(16, fg_iou=0.0)]
)
def test_only_chosen_anchors_have_a_gradient(kind: str, sampler: Any) -> None:
    """It is the same gradient as with all anchors: torchvision's own, except for SSD, which mines by itself."""
    whole = with_ohem(make("ssd"), AllSampler(), loss="builtin") if kind == "ssd" else make(kind)
    mined = with_ohem(make(kind), sampler, loss="builtin")
    expected, actual = head_outputs(whole, "two images"), head_outputs(mined, "two images")
    chosen = torch.zeros(len(mined.mining.rois), dtype=torch.bool)
    chosen[mined.mining.chosen] = True
    assert 0 < chosen.sum() < len(chosen)
    for key, output in actual.items():
        gradient, reference = output.grad.flatten(0, 1), expected[key].grad.flatten(0, 1)
        assert gradient.any()
        assert not gradient[~chosen].any()
        torch.testing.assert_close(gradient[chosen], reference[chosen], rtol=1e-5, atol=1e-7)


@KINDS
def test_anchors_of_highest_loss_are_chosen(kind: str) -> None:
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None), loss="builtin")
    losses = step(model, "two images")
    mining = model.mining
    for i in range(2):
        candidates = (mining.rois.images == i) & (mining.rois.labels != -1)
        expected = mining.losses[candidates].sort(descending=True).values[:8]
        chosen = mining.losses[mining.chosen][mining.rois.images[mining.chosen] == i]
        torch.testing.assert_close(chosen.sort(descending=True).values, expected)
    foreground = [int(mining.rois[mining.rois.images == i].foreground.sum()) for i in range(2)]
    divisors = torch.tensor([2 * n for n in foreground] if kind == "retinanet" else [sum(foreground)] * 2)
    chosen = mining.losses[mining.chosen] / divisors[mining.rois.images[mining.chosen]]
    torch.testing.assert_close(sum(losses.values()), chosen.sum())


@KINDS
def test_cross_entropy_is_the_mean_over_the_chosen(kind: str) -> None:
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None), loss="cross_entropy")
    outputs = head_outputs(model, "two images")
    rois, chosen = model.mining.rois, model.mining.chosen
    logits, labels = outputs["cls_logits"].flatten(0, 1)[chosen], rois.labels[chosen]
    if kind == "ssd":
        expected = functional.cross_entropy(logits, labels, reduction="sum")
    else:
        wanted = torch.stack([torch.arange(1, logits.shape[1] + 1) == label for label in labels])
        expected = functional.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum")
    losses = step(model, "two images")
    torch.testing.assert_close(losses["classification"], expected / len(chosen))
    torch.testing.assert_close(sum(losses.values()), model.mining.losses[chosen].mean())


@KINDS
@LOSSES
@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_are_finite_and_complete(kind: str, loss: str, name: str) -> None:
    """Every parameter that has a gradient in torchvision's step has one with mining, whatever is chosen."""
    model = make(kind)
    keys = list(step(model, name))
    trained = set(gradients(model))
    for sampler in SAMPLERS.values():
        losses = step(with_ohem(model, sampler, loss=loss), name)
        assert list(losses) == keys
        assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
        current = gradients(model)
        assert set(current) == trained
        assert all(gradient.isfinite().all() for gradient in current.values())


@KINDS
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_step_is_deterministic(kind: str, sampler: str) -> None:
    results = []
    for _ in range(2):
        model = with_ohem(make(kind), SAMPLERS[sampler])
        results.append((step(model, "two images"), gradients(model)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@KINDS
@LOSSES
def test_autocast_ranks_in_float32(kind: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are computed and ranked in float32 from outputs of the head in bfloat16."""
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None), loss=loss)
    holder = model if kind == "ssd" else model.head
    mined, calls = holder.compute_loss, []
    original = type(mined).__call__

    def record_call(self: Any, *args: Any) -> dict[str, Tensor]:
        calls.append(args)
        return original(self, *args)  # type: ignore[no-any-return]

    with monkeypatch.context() as patched, torch.autocast("cpu", dtype=torch.bfloat16):
        patched.setattr(type(mined), "__call__", record_call)
        losses = step(model, "two images")
    [(targets, outputs, *rest)] = calls
    assert all(output.dtype == torch.bfloat16 for output in outputs.values())
    assert all(values.dtype == torch.float32 for values in (model.mining.rois.boxes, model.mining.losses))
    expected = mined(targets, {name: output.float() for name, output in outputs.items()}, *rest)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@KINDS
def test_nan_is_reported(kind: str) -> None:
    model = with_ohem(make(kind))
    with torch.no_grad():
        next(iter(model.head.classification_head.parameters()))[0] = torch.nan
    with pytest.warns(RuntimeWarning, match="RoI losses are NaN"):
        model(*batch("two images"))
    assert model.mining.statistics()["nan"] > 0
