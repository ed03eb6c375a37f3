"""Mining in the detection models of ultralytics, without their trainer."""

import copy
import io
import math
import pickle
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ohem import AllSampler, OHEMSampler, RatioSampler, Recorder, with_ohem
from tests.helpers.contracts import EVERY_SAMPLER
from tests.integrations.yolo.models import KINDS, batch, leaves, make

from ultralytics.nn.tasks import DetectionModel, SegmentationModel  # isort: skip  # after its settings
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss  # isort: skip

BATCHES = ("two images", "one object", "no object")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
ONE_HEAD_OR_TWO = pytest.mark.parametrize("kind", ["yolo11", "yolo26"])


@cache
def made(kind: str) -> tuple[DetectionModel, Any]:
    """Returns a model without mining, and its outputs for the mini-batch. Tests copy them."""
    model = make(kind)
    return model, model(batch()["img"])


def step(model: Any, kind: str, name: str = "two images") -> tuple[Tensor, list[float], list[Tensor]]:
    """Returns the loss (3,), the three reported losses, and the gradients of the outputs (N, channels, A)."""
    outputs, tensors = leaves(made(kind)[1])
    torch.manual_seed(0)
    loss, items = model.loss(batch(name), outputs)
    gradients = torch.autograd.grad(loss.sum(), tensors, materialize_grads=True)
    values = items.values() if isinstance(items, dict) else items  # a tensor in ultralytics 8.4.0
    return loss.detach(), [float(value) for value in values], list(gradients)


def mined(kind: str, sampler: Any = None) -> Any:
    return with_ohem(copy.deepcopy(made(kind)[0]), sampler)


@ONE_HEAD_OR_TWO
def test_state_and_detections_stay(kind: str) -> None:
    plain = copy.deepcopy(made(kind)[0])
    model = mined(kind, OHEMSampler(2))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    loss, _ = model(batch())
    loss.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(batch()["img"])[0], plain.eval()(batch()["img"])[0])
        validation = model.loss(batch())[0]
    assert torch.equal(validation, plain.loss(batch())[0]), "the validation loss is mined"
    with torch.inference_mode():
        assert torch.equal(model.fuse(verbose=False)(batch()["img"])[0], plain.fuse(verbose=False)(batch()["img"])[0])


@EVERY_KIND
def test_all_anchors_have_their_loss_and_gradient(kind: str) -> None:
    """Bit for bit, through the whole network and with class weights."""
    plain, model = copy.deepcopy(made(kind)[0]), mined(kind, AllSampler())
    for network in (plain, model):
        network.class_weights = torch.tensor([0.5, 1.0, 2.0])
        network(batch())[0].sum().backward()
    gradients = [[p.grad for p in network.parameters() if p.grad is not None] for network in (plain, model)]
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(map(torch.equal, *gradients))
    for name in BATCHES:
        expected, actual = step(plain, kind, name), step(model, kind, name)
        assert torch.equal(expected[0], actual[0])
        assert expected[1] == actual[1]
        assert all(map(torch.equal, expected[2], actual[2]))


class Fixed:
    """Chooses every third anchor, and keeps what it was given."""

    def __call__(self, rois: Any, losses: Any) -> Tensor:
        self.rois, self.losses, self.parts = rois, losses(), (losses(1.0, 0.0), losses(0.0, 1.0))
        return torch.arange(0, len(rois), 3)


@ONE_HEAD_OR_TWO
def test_chosen_anchors_keep_their_gradient_and_others_have_none(kind: str) -> None:
    _, _, expected = step(copy.deepcopy(made(kind)[0]), kind)
    _, _, actual = step(mined(kind, Fixed()), kind)
    assert len(actual) == (4 if kind == "yolo26" else 2), "both heads"
    for before, after in zip(expected, actual, strict=True):
        chosen = torch.zeros(before[:, 0].numel(), dtype=torch.bool)
        chosen[::3] = True
        chosen = chosen.view(before[:, :1].shape)
        torch.testing.assert_close(after, torch.where(chosen, before, 0))
        assert before[:, :, 1:].any()


@ONE_HEAD_OR_TWO
def test_the_ranking_adds_up_to_their_loss(kind: str) -> None:
    sampler = Fixed()
    model = mined(kind, sampler)
    model.class_weights = torch.tensor([0.5, 1.0, 2.0])
    plain = copy.deepcopy(made(kind)[0])
    plain.class_weights = model.class_weights
    step(model, kind)
    items = step(plain, kind)[1]  # box, cls, and dfl or l1, divided by the sum of the target scores
    classification, boxes = (part.sum() for part in sampler.parts)
    assert float(classification / boxes) == pytest.approx(items[1] / (items[0] + items[2]), rel=1e-5)
    torch.testing.assert_close(sampler.losses, sum(sampler.parts))


@ONE_HEAD_OR_TWO
def test_anchors_are_labelled_by_their_assigner(kind: str) -> None:
    sampler = Fixed()
    model = mined(kind, sampler)
    step(model, kind)
    rois = model.mining.rois
    in_image = [rois.labels[rois.images == image].unique().tolist() for image in range(2)]
    assert in_image == [[0, 1, 2], [0, 3]]
    assert rois.foreground.sum() == 3 if kind == "yolo26" else rois.foreground.sum() > 3, (
        "recorded: the head without NMS"
    )
    _, _, gradients = step(mined(kind, Background()), kind)
    assert not gradients[-2].any(), "background has a box loss"
    step(model, kind, "no object")
    assert not sampler.rois.foreground.any()
    assert not sampler.rois.ious.any()


class Background:
    """Chooses all background."""

    def __call__(self, rois: Any, losses: Any) -> Tensor:
        return (~rois.foreground).nonzero()[:, 0]


@pytest.mark.parametrize("name", EVERY_SAMPLER)
def test_every_sampler_trains(name: str) -> None:
    model = with_ohem(without_layers(), EVERY_SAMPLER[name])
    for kind_of_batch in ("two images", "no object"):
        loss, _, gradients = step(model, "yolo11", kind_of_batch)
        numbers = model.mining.statistics()
        assert loss.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert numbers["rois"] == 2 * 84
        assert sum(model.mining.iou_histogram()) == numbers["chosen"]
        assert all(math.isfinite(number) for number in numbers.values())
    assert torch.equal(step(model, "yolo11", "no object")[0], loss), "not the same for the same seed"


@cache
def without_layers() -> Any:
    """Returns a model that is only given outputs. `with_ohem` replaces its sampler."""
    return copy.deepcopy(made("yolo11")[0])


def test_default_keeps_all_foreground_and_mines_background() -> None:
    model = mined("yolo11")
    assert model.mining.sampler == RatioSampler(3, min_negatives=256)
    images = torch.rand(2, 3, 160, 160)
    model({**batch(), "img": images})
    plain = with_ohem(copy.deepcopy(made("yolo11")[0]), Fixed())
    plain({**batch(), "img": images})
    numbers = model.mining.statistics()
    foreground = float(plain.mining.rois.foreground.sum())
    assert numbers["rois"] == 2 * 525
    assert numbers["chosen"] == foreground + 2 * 256
    assert numbers["loss_chosen"] > numbers["loss_all"]


def test_autocast_and_broken_networks() -> None:
    """Their trainer recovers from a loss that is NaN: mining leaves it to do so."""
    losses = []
    for model in (copy.deepcopy(made("yolo11")[0]), mined("yolo11", AllSampler())):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(batch())[0])
    assert torch.equal(*losses)
    model = mined("yolo11", OHEMSampler(8))
    nn.init.constant_(model.model[0].conv.weight, torch.nan)
    with pytest.warns(RuntimeWarning, match="RoI losses are NaN"):
        assert model(batch())[0].isnan().any()


@ONE_HEAD_OR_TWO
def test_copies_mine_with_their_own_recorder(kind: str) -> None:
    model = mined(kind, OHEMSampler(8))
    expected = step(model, kind)[0]
    twin = copy.deepcopy(model)
    assert twin.mining is not model.mining
    assert twin.mining.statistics() == {}
    assert torch.equal(step(twin, kind)[0], expected)
    assert twin.mining.statistics() == model.mining.statistics()
    assert copy.copy(model).state_dict().keys() == model.state_dict().keys()


@ONE_HEAD_OR_TWO
def test_nothing_of_ohem_is_written(kind: str) -> None:
    model = mined(kind)
    step(model, kind)
    written = io.BytesIO()
    torch.save(copy.deepcopy(model).half(), written)
    for content in (written.getvalue(), pickle.dumps(model)):
        assert b"ohem" not in content
    loaded = pickle.loads(pickle.dumps(model))
    assert vars(loaded).keys() - {"criterion"} == vars(made(kind)[0]).keys() - {"criterion"}
    assert torch.equal(step(loaded, kind)[0], step(copy.deepcopy(made(kind)[0]), kind)[0])


@ONE_HEAD_OR_TWO
def test_a_new_criterion_mines(kind: str) -> None:
    """Their trainer makes one when it resumes, and sets it to None before it saves."""
    model = mined(kind, OHEMSampler(8))
    expected = step(model, kind)[0]
    for criterion in (None, model.init_criterion()):
        model.criterion = criterion
        assert torch.equal(step(model, kind)[0], expected)


def test_a_second_call_replaces_the_sampler() -> None:
    model = with_ohem(mined("yolo11", OHEMSampler(8)), OHEMSampler(5))
    step(model, "yolo11")
    assert model.mining.statistics()["chosen"] == 10
    assert isinstance(model.mining, Recorder)


class OtherLoss(v8DetectionLoss):
    def loss(self, preds: Any, batch: Any) -> Any:
        return super().loss(preds, batch)


class OtherBoxLoss(BboxLoss):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


class OtherModel(DetectionModel):
    def loss(self, batch: Any, preds: Any = None) -> Any:
        return super().loss(batch, preds)


def test_what_cannot_be_mined_is_refused() -> None:
    with pytest.raises(TypeError, match=r"detection models of ultralytics.*and not SegmentationModel"):
        with_ohem(SegmentationModel("yolo11n-seg.yaml", verbose=False))
    other = copy.deepcopy(made("yolo11")[0])
    other.__class__ = OtherModel
    with pytest.raises(TypeError, match="and not OtherModel, which has another loss"):
        with_ohem(other)
    other = copy.deepcopy(made("yolo11")[0])
    other.loss = lambda *args: None
    with pytest.raises(TypeError, match="the loss of this DetectionModel, which was replaced"):
        with_ohem(other)
    model = mined("yolo11")
    model.criterion = OtherLoss(model)
    with pytest.raises(TypeError, match="OtherLoss, whose loss is not that of ultralytics' v8DetectionLoss"):
        step(model, "yolo11")
    model.criterion = model.init_criterion()
    model.criterion.bbox_loss = OtherBoxLoss()
    with pytest.raises(TypeError, match="OtherBoxLoss, whose forward is not that of ultralytics' BboxLoss"):
        step(model, "yolo11")
    model.criterion = model.init_criterion()
    model.criterion.bce = nn.BCEWithLogitsLoss()
    with pytest.raises(TypeError, match=r"needs a bce with the loss of each anchor.*\(2, 84, 3\)"):
        step(model, "yolo11")


def test_own_parts_rank_and_are_trained() -> None:
    """A focal loss in the place of the cross entropy, for example."""
    model, sampler = mined("yolo11"), Fixed()
    model = with_ohem(model, sampler)
    step(model, "yolo11")
    before = sampler.parts[0]
    model.criterion.bce = lambda logits, wanted: 2 * nn.functional.l1_loss(logits.sigmoid(), wanted, reduction="none")
    loss, _, gradients = step(model, "yolo11")
    assert loss.isfinite().all()
    assert gradients[1][:, :, 0].any()
    assert not torch.allclose(sampler.parts[0], before)
