"""Mining in torchvision's one-stage detectors, against what torchvision computes itself."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torchvision.models import detection
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.ssd import SSD

from ohem import AllSampler, OHEMSampler, RandomSampler, RatioSampler, RoIs, with_ohem
from tests.contracts import EVERY_SAMPLER, check_detector
from tests.integrations.one_stage import BATCHES, LEFT, MAKE, RIGHT, Backbone, batch, make, make_ssd, step, target


class NoneSampler:
    """Chooses nothing."""

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)


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
# Few points of FCOS have an IoU of a half.
CONTRACT: dict[str, Any] = {**EVERY_SAMPLER, "default": None, "random": SAMPLERS["random"]}
KINDS = pytest.mark.parametrize("kind", MAKE)
LOSSES = pytest.mark.parametrize("loss", ["own", "cross_entropy"])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_step(mined: Any, own: Any, name: str) -> None:
    """Both give the same losses and gradients for the mini-batch `name`."""
    expected, found = step(own, name), step(mined, name)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(mined), gradients(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("name", BATCHES)
def test_with_all_anchors_it_is_torchvisions_loss(kind: str, name: str) -> None:
    same_step(with_ohem(make(kind), AllSampler()), make(kind), name)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "diou", "ciou"])
def test_every_box_loss_of_retinanet(box_loss: str) -> None:
    own, mined = make("retinanet"), make("retinanet")
    for model in (own, mined):
        model.head.regression_head._loss_type = box_loss
    same_step(with_ohem(mined, AllSampler()), own, "two images")


@pytest.mark.parametrize("name", ["two images", "many objects", "the same object twice"])
@pytest.mark.parametrize("fraction", [0.25, 0.3])
def test_ssd_mines_by_default_what_torchvision_does(name: str, fraction: float) -> None:
    own, mined = (make("ssd", positive_fraction=fraction) for _ in range(2))
    same_step(with_ohem(mined), own, name)
    assert mined.mining.statistics()["foreground"] == pytest.approx(fraction, abs=0.02)


def test_ssdlite_mines_by_default_what_torchvision_does() -> None:
    torch.manual_seed(0)
    own = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).train()
    same_step(with_ohem(copy.deepcopy(own)), own, "two images")


def test_torchvisions_ssd_counts_positives_twice_where_negatives_run_short_and_ours_does_not() -> None:
    """Every anchor that touches the object is positive, and there are too few others for three times as many."""
    own, mined = (make("ssd", iou_thresh=1e-6) for _ in range(2))
    theirs, ours = step(own, "one object")["classification"], step(with_ohem(mined), "one object")["classification"]
    rois, losses = mined.mining.rois, mined.mining.losses
    first = rois.images == 0
    positives, negatives = (int((first & mask).sum()) for mask in (rois.foreground, ~rois.foreground))
    assert 3 * positives > negatives > 0
    classification = per_anchor_cross_entropy(mined, "one object")
    everything, spare = classification[first].sum(), 3 * positives - negatives
    ties = classification[first & rois.foreground].sort().values
    assert spare >= positives, "torchvision counts all of them twice, so that their order does not matter"
    torch.testing.assert_close(theirs, (everything + ties.sum()) / positives)
    hardest = classification[~first].sort(descending=True).values[:3]
    torch.testing.assert_close(ours, (everything + hardest.sum()) / positives)
    torch.testing.assert_close(losses[~first], classification[~first])


def test_torchvisions_ssd_learns_nothing_from_images_without_an_object_and_ours_does() -> None:
    own, mined = make("ssd"), with_ohem(make("ssd"))
    assert step(own, "no object")["classification"] == 0
    hardest = per_anchor_cross_entropy(mined, "no object").view(2, -1).topk(3).values
    torch.testing.assert_close(step(mined, "no object")["classification"], hardest.sum())


@pytest.mark.parametrize("name", ["no object", "one object"])
def test_an_ssd_with_a_fixed_number_of_anchors_is_not_thrown_off_where_objects_are_few(name: str) -> None:
    mined = with_ohem(make("ssd"), OHEMSampler(8, nms_iou=None))
    losses = step(mined, name)
    torch.testing.assert_close(sum(losses.values()), mined.mining.losses[mined.mining.chosen].mean())


@KINDS
@pytest.mark.parametrize("sampler", CONTRACT.values(), ids=CONTRACT)
def test_everything_else_stays_as_it_is(kind: str, sampler: Any) -> None:
    check_detector(partial(make, kind, score_thresh=0.0), sampler, {name: batch(name) for name in BATCHES})


@pytest.mark.parametrize(
    "build",
    [
        detection.retinanet_resnet50_fpn,
        detection.retinanet_resnet50_fpn_v2,
        detection.fcos_resnet50_fpn,
        detection.ssd300_vgg16,
    ],
    ids=lambda build: build.__name__,
)
def test_every_builder(build: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):  # no weights are made
        model = build(weights=None, weights_backbone=None)
    names = list(model.state_dict())
    assert with_ohem(model).mining.statistics() == {}
    assert list(model.state_dict()) == names


def per_anchor_cross_entropy(model: Any, name: str) -> Tensor:
    """(R,) of an SSD, computed from what its head gives; `model.mining` knows the labels."""
    outputs = head_outputs(model, name)
    labels = model.mining.rois.labels
    return functional.cross_entropy(outputs["cls_logits"].detach().flatten(0, 1), labels, reduction="none")


def head_outputs(model: Any, name: str) -> dict[str, Tensor]:
    """What the head gives for the mini-batch `name`, with its gradient of the losses where that is not zero."""
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, outputs: dict[str, Tensor]) -> None:
        seen.update(outputs)
        for output in outputs.values():
            output.retain_grad()

    handle = model.head.register_forward_hook(keep)
    step(model, name)
    handle.remove()
    return seen


@KINDS
@pytest.mark.parametrize(
    "sampler", [OHEMSampler(8, nms_iou=None), OHEMSampler(8), RatioSampler(), RandomSampler(16, fg_iou=0.0)]
)
def test_the_chosen_have_the_gradient_they_have_among_all_and_the_others_none(kind: str, sampler: Any) -> None:
    """The masked loss: torchvision's own where it does not mine by itself."""
    whole = with_ohem(make("ssd"), AllSampler(), loss="own") if kind == "ssd" else make(kind)
    mined = with_ohem(make(kind), sampler, loss="own")
    expected, found = head_outputs(whole, "two images"), head_outputs(mined, "two images")
    chosen = torch.zeros(len(mined.mining.rois), dtype=torch.bool)
    chosen[mined.mining.chosen] = True
    assert 0 < chosen.sum() < len(chosen)
    for key, output in found.items():
        gradient, reference = output.grad.flatten(0, 1), expected[key].grad.flatten(0, 1)
        assert gradient.any()
        assert not gradient[~chosen].any()
        torch.testing.assert_close(gradient[chosen], reference[chosen], rtol=1e-5, atol=1e-7)


@KINDS
def test_the_hardest_by_their_own_loss_are_chosen(kind: str) -> None:
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None), loss="own")
    losses = step(model, "two images")
    mining = model.mining
    for i in range(2):
        here = (mining.rois.images == i) & (mining.rois.labels != -1)
        expected = mining.losses[here].sort(descending=True).values[:8]
        found = mining.losses[mining.chosen][mining.rois.images[mining.chosen] == i]
        torch.testing.assert_close(found.sort(descending=True).values, expected)
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
def test_anchors_are_labelled_as_the_model_matches_them(kind: str) -> None:
    model = with_ohem(make(kind), AllSampler())
    step(model, "two images")
    rois, per_image = model.mining.rois, len(model.mining.rois) // 2
    assert rois.num_images == 2
    assert rois.images.tolist() == [0] * per_image + [1] * per_image
    names = {1, 2} if kind == "ssd" else {2, 3}
    assert set(rois.labels[:per_image].tolist()) - {-1, 0} == names
    assert set(rois.labels[per_image:].tolist()) - {-1, 0} == {min(names)}
    assert (rois.labels == -1).any() == (kind == "retinanet")
    assert rois.ious[rois.foreground].min() > 0
    assert rois.ious.max() <= 1
    assert rois.targets[rois.foreground].any(dim=1).all()
    assert not rois.targets[~rois.foreground].any()


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_classes_may_start_at_0(kind: str) -> None:
    """A head with sigmoid has no background: what is of its class 0 is foreground, and trained as torchvision does."""
    own, mined = make(kind), with_ohem(make(kind), RatioSampler(1e9))
    pictures, _ = batch("two images")
    targets = [target(LEFT, labels=[0]), target(RIGHT, labels=[3])]
    torch.testing.assert_close(mined(pictures, targets), own(pictures, targets))
    assert set(mined.mining.rois.labels.tolist()) >= {0, 1, 4}


@KINDS
def test_an_ignored_object_is_neither_foreground_nor_mined(kind: str) -> None:
    model = with_ohem(make(kind), RatioSampler())
    pictures, targets = batch("two images")
    targets[0]["ignore"] = torch.tensor([False, True])
    model(pictures, targets)
    rois = model.mining.rois
    first = rois[rois.images == 0]
    assert set(first.labels.tolist()) == ({-1, 0, 1} if kind == "ssd" else {-1, 0, 2})
    inside = (first.boxes[:, :2] >= torch.tensor(RIGHT[:2])) & (first.boxes[:, 2:] <= torch.tensor(RIGHT[2:]))
    assert (first.labels[inside.all(dim=1)] == -1).all()
    assert first.ious[first.labels == -1].min() == 0
    assert not model.mining.losses[rois.labels == -1].any()


@pytest.mark.parametrize("kind", ["ssd", "retinanet"])
def test_what_is_matched_with_an_ignored_object_is_ignored_however_little_they_overlap(kind: str) -> None:
    """A thin object gets the anchor nearest to it."""
    model = with_ohem(make(kind), AllSampler())
    pictures, targets = batch("two images")
    labels = []
    for ignored in (False, True):
        targets[0] = {**target([0, 30, 64, 34]), "ignore": torch.tensor([ignored])}
        model(pictures, targets)
        labels.append(model.mining.rois.labels[model.mining.rois.images == 0])
    assert (labels[0] > 0).any()
    assert (labels[1][labels[0] > 0] == -1).all()


@KINDS
@LOSSES
@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_are_finite_and_there(kind: str, loss: str, name: str) -> None:
    """Whatever is chosen, no parameter is left without a gradient that has one in torchvision's step."""
    model = make(kind)
    keys = list(step(model, name))
    trained = set(gradients(model))
    for sampler in SAMPLERS.values():
        losses = step(with_ohem(model, sampler, loss=loss), name)
        assert list(losses) == keys
        assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
        found = gradients(model)
        assert set(found) == trained
        assert all(gradient.isfinite().all() for gradient in found.values())


@KINDS
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_step_twice_is_the_same(kind: str, sampler: str) -> None:
    found = []
    for _ in range(2):
        model = with_ohem(make(kind), SAMPLERS[sampler])
        found.append((step(model, "two images"), gradients(model)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@KINDS
def test_what_is_not_training_is_unchanged(kind: str) -> None:
    """Checkpoints interchange both ways, and detections are the same."""
    own, mined = make(kind, score_thresh=0.0), with_ohem(make(kind, score_thresh=0.0))
    assert list(own.state_dict()) == list(mined.state_dict())
    step(mined, "two images")
    own.load_state_dict(mined.state_dict())
    mined.load_state_dict(own.state_dict())
    pictures, _ = batch("two images")
    with torch.no_grad():
        expected, found = own.eval()(pictures), mined.eval()(pictures)
    assert len(expected[0]["boxes"]) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@KINDS
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_mines_for_itself(kind: str, duplicate: Callable[[Any], Any]) -> None:
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None))
    step(model, "two images")
    twin = duplicate(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    expected = step(model, "two images")
    torch.testing.assert_close(step(duplicate(model), "two images"), expected)
    step(twin, "many objects")
    assert twin.mining is not model.mining
    torch.testing.assert_close(sum(expected.values()), sum(step(model, "two images").values()))
    assert len(twin.mining.rois) == len(model.mining.rois)
    assert twin.mining.statistics()["loss_all"] != model.mining.statistics()["loss_all"]


@KINDS
@LOSSES
def test_autocast(kind: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are computed and ranked in float32 from what the head gives in bfloat16."""
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None), loss=loss)
    holder = model if kind == "ssd" else model.head
    mined, calls = holder.compute_loss, []
    usual = type(mined).__call__

    def watched(self: Any, *args: Any) -> dict[str, Tensor]:
        calls.append(args)
        return usual(self, *args)  # type: ignore[no-any-return]

    with monkeypatch.context() as patched, torch.autocast("cpu", dtype=torch.bfloat16):
        patched.setattr(type(mined), "__call__", watched)
        found = step(model, "two images")
    [(targets, outputs, *rest)] = calls
    assert all(output.dtype == torch.bfloat16 for output in outputs.values())
    assert all(values.dtype == torch.float32 for values in (model.mining.rois.boxes, model.mining.losses))
    expected = mined(targets, {name: output.float() for name, output in outputs.items()}, *rest)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@KINDS
def test_nan_is_reported(kind: str) -> None:
    model = with_ohem(make(kind))
    with torch.no_grad():
        next(iter(model.head.classification_head.parameters()))[0] = torch.nan
    with pytest.warns(RuntimeWarning, match="RoI losses are NaN"):
        model(*batch("two images"))
    assert model.mining.statistics()["nan"] > 0


@KINDS
def test_mining_again_takes_the_first_ones_place(kind: str) -> None:
    model = with_ohem(with_ohem(make(kind), AllSampler()), OHEMSampler(3, nms_iou=None))
    step(model, "two images")
    assert model.mining.statistics()["chosen"] == 6


def test_default_samplers() -> None:
    """Hard negatives at the model's own ratio, or the hardest anchors of an image without NMS."""
    assert with_ohem(make("ssd", positive_fraction=0.5)).mining.sampler == RatioSampler(1.0)
    for kind in ("retinanet", "fcos"):
        assert with_ohem(make(kind)).mining.sampler == OHEMSampler(256, nms_iou=None)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@KINDS
@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_misses_no_gradient(kind: str) -> None:
    """It would raise in the step after one in which a parameter has none."""
    parallel = nn.parallel.DistributedDataParallel(with_ohem(make(kind), NoneSampler()))
    for name in ("no object", "two images", "one object"):
        step(parallel, name)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"with_ohem knows .*FCOS.*RetinaNet, SSD, and not Linear: .*register\(Linear\)"
    ):
        with_ohem(nn.Linear(2, 2), AllSampler())


def test_a_scripted_model_is_refused() -> None:
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="give it the one that was scripted"):
        with_ohem(scripted, AllSampler())


class ReplacedLoss(SSD):
    def compute_loss(self, *args: Any) -> dict[str, Tensor]:
        return {}


class ReplacedClassification(RetinaNetClassificationHead):
    def compute_loss(self, *args: Any) -> Tensor:
        return torch.zeros(())


class Derived(SSD):
    pass


def test_a_loss_that_is_not_torchvisions_is_refused() -> None:
    """Mining with another loss than the model's would change it unasked."""
    model = make_ssd()
    model.__class__ = ReplacedLoss
    with pytest.raises(TypeError, match="ReplacedLoss, whose compute_loss is not that of torchvision's SSD"):
        with_ohem(model)
    retinanet = make("retinanet")
    retinanet.head.classification_head = ReplacedClassification(Backbone().out_channels, 6, 4)
    with pytest.raises(TypeError, match="ReplacedClassification"):
        with_ohem(retinanet)


def test_a_derived_model_is_mined() -> None:
    model = make_ssd()
    model.__class__ = Derived
    step(with_ohem(model.train()), "two images")
    assert type(model) is Derived
    assert model.mining.statistics()["chosen"] > 0


def test_options_that_are_not_there_are_refused() -> None:
    with pytest.raises(TypeError, match="no option 'los' for SSD"):
        with_ohem(make("ssd"), los="own")
    with pytest.raises(ValueError, match='"own" or "cross_entropy", not \'focal\''):
        with_ohem(make("retinanet"), loss="focal")
