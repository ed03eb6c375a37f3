"""Mining of the anchors of the RPN: losses and gradients equal torchvision's on the chosen anchors."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork

from ohem import AllSampler, OHEMSampler, RandomSampler, RatioSampler, RoIs, with_ohem
from ohem.integrations.rpn import OHEMRPN, IgnoringRPN
from ohem.recorder import Recorder
from tests.helpers import one_stage
from tests.helpers.contracts import EVERY_SAMPLER, check_detector
from tests.helpers.tiny_rcnn import BATCHES, MODELS, Batch, faster_rcnn, mini_batch, step

EVERY_ROI = RandomSampler(512, bg_lo=0.0)  # the RoIs that torchvision draws
SAMPLERS = ("ohem", "release", "ratio", "all", "rank")
HARDEST = OHEMSampler(16, nms_iou=None)


def mined(rpn_sampler: Any, sampler: Any = EVERY_ROI, **options: Any) -> FasterRCNN:
    return with_ohem(faster_rcnn(**options), sampler, rpn_sampler=rpn_sampler)


def nothing(rois: RoIs, losses: Any) -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}")


# --- identities


class Drawn:
    """A sampler that returns the anchors that torchvision's random sampling drew, which `watch` notes."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []

    def watch(self, model: FasterRCNN) -> FasterRCNN:
        original = model.rpn.fg_bg_sampler

        def sample(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            positive, negative = original(labels)
            self.masks = [one | other for one, other in zip(positive, negative, strict=True)]
            return positive, negative

        model.rpn.fg_bg_sampler = sample
        return model

    def __call__(self, rois: RoIs, losses: Any) -> Tensor:
        chosen = torch.cat(self.masks).nonzero()[:, 0]
        return chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("batch", ["usual", "the second has no object", "no object"])
def test_anchors_of_torchvision_give_its_losses_and_gradients(batch: str) -> None:
    drawn = Drawn()
    size = {"rpn_batch_size_per_image": 32}
    expected_losses, expected = step(drawn.watch(faster_rcnn(**size)), BATCHES[batch])
    assert all(mask.sum() == 32 for mask in drawn.masks)
    model = mined(drawn, AllSampler(), **size)
    losses, gradients = step(model, BATCHES[batch])
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        assert losses[name] == expected_losses[name]
    head = {name for name in expected if name.startswith("rpn.")}  # the backbone is trained by both stages
    assert head
    assert_close({name: gradients[name] for name in head}, {name: expected[name] for name in head})
    assert model.rpn.mining.losses is None


def test_random_sampler_draws_the_rois_that_torchvision_draws() -> None:
    """Only the RPN is mined with it."""
    expected, actual = (step(model, BATCHES["usual"]) for model in (faster_rcnn(), with_ohem(faster_rcnn(), EVERY_ROI)))
    assert actual[0] == expected[0]
    assert_close(actual[1], expected[1])


def test_all_anchors_give_the_losses_of_torchvision_without_a_limit() -> None:
    expected_losses, expected = step(faster_rcnn(rpn_batch_size_per_image=4000), BATCHES["usual"])
    model = mined(AllSampler(), AllSampler(), rpn_batch_size_per_image=4000)
    losses, gradients = step(model, BATCHES["usual"])
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        torch.testing.assert_close(losses[name], expected_losses[name])
    head = {name for name in expected if name.startswith("rpn.")}
    assert_close({name: gradients[name] for name in head}, {name: expected[name] for name in head})
    rois = model.rpn.mining.rois
    assert len(model.rpn.mining.chosen) == int((rois.labels >= 0).sum()) < len(rois) == 2 * (16 * 24 + 8 * 12)


def test_the_hardest_anchors_are_chosen_and_ranked_by_the_loss_that_is_trained() -> None:
    model = mined(HARDEST)
    losses, _ = step(model, BATCHES["usual"])
    numbers = model.rpn.mining.statistics()
    assert numbers["chosen"] == 32
    trained = losses["loss_objectness"] + losses["loss_rpn_box_reg"]
    assert numbers["loss_chosen"] == pytest.approx(float(trained), rel=1e-5)
    record = model.rpn.mining
    for image in range(2):
        here = (record.rois.images == image) & (record.rois.labels >= 0)
        assert record.losses[record.chosen][record.rois.images[record.chosen] == image].min() >= (
            record.losses[here].topk(16).values.min()
        )
    assert not record.losses[record.rois.labels < 0].any()


def test_loss_of_an_anchor_by_hand() -> None:
    rpn = mined(AllSampler()).rpn
    anchors, objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 50, 50]]), torch.tensor([[0.0, 0, 12, 10]])
    rpn._assigned = [anchors], [{"boxes": objects}]
    targets = torch.tensor([[0.1, 0.0, 0.2, 0.0], [9.0, 9, 9, 9]])
    losses = rpn.compute_loss(torch.tensor([[2.0], [0.5]]), torch.zeros(2, 4), [torch.tensor([1.0, 0.0])], [targets])
    log_losses = functional.softplus(torch.tensor([-2.0, 0.5]))  # -log sigmoid(2), -log(1 - sigmoid(0.5))
    box_loss = (0.5 * 0.1**2 * 9) + (0.2 - 0.5 / 9)  # smooth L1, quadratic below 1 / 9
    assert float(losses[0]) == pytest.approx(float(log_losses.mean()))
    assert float(losses[1]) == pytest.approx(box_loss / 2)
    assert rpn.mining.rois.labels.tolist() == [1, 0]
    assert rpn.mining.rois.ious.tolist() == pytest.approx([10 / 12, 120 / 2500])
    assert rpn.mining.rois.targets[1].tolist() == [0, 0, 0, 0]


# --- contract and usage


@pytest.mark.parametrize("name", SAMPLERS)
def test_contract_of_a_detector(name: str) -> None:
    batches = {key: BATCHES[key] for key in ("usual", "the second has no object", "no object")}
    check_detector(faster_rcnn, OHEMSampler(8), batches, rpn_sampler=EVERY_SAMPLER[name])


@pytest.mark.parametrize("kind", ["mask", "keypoint", "normalised"])
def test_other_models_of_the_family(kind: str) -> None:
    model = with_ohem(MODELS[kind](), OHEMSampler(8), rpn_sampler=HARDEST)
    _, gradients = step(model, BATCHES["usual"])
    assert gradients.keys() == step(MODELS[kind](), BATCHES["usual"])[1].keys()
    assert model.rpn.mining.statistics()["chosen"] == 32


def test_second_call_replaces_or_removes_the_sampler() -> None:
    model = mined(HARDEST)
    with_ohem(model, OHEMSampler(8), rpn_sampler=AllSampler())
    step(model, BATCHES["usual"])
    assert model.rpn.mining.statistics()["chosen"] > 32
    with_ohem(model, OHEMSampler(8))
    assert type(model.rpn) is IgnoringRPN
    assert not hasattr(model.rpn, "mining")
    model.rpn.fg_bg_sampler = Drawn().watch(faster_rcnn()).rpn.fg_bg_sampler  # the user's own is used again
    expected, _ = step(with_ohem(faster_rcnn(), OHEMSampler(8)), BATCHES["usual"])
    assert step(model, BATCHES["usual"])[0] == expected


def test_anchors_are_deleted_after_the_step() -> None:
    model = mined(HARDEST)
    before = set(vars(model.rpn))
    step(model, BATCHES["usual"])
    assert set(vars(model.rpn)) == before

    def fail(rois: RoIs, losses: Any) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        step(with_ohem(model, rpn_sampler=fail), BATCHES["usual"])
    assert set(vars(model.rpn)) == before


def test_recorder_of_the_user_is_used() -> None:
    recorder = Recorder(HARDEST)
    model = mined(recorder)
    assert model.rpn.mining is recorder
    assert model.mining is model.roi_heads.mining is not recorder
    with pytest.raises(ValueError, match="Recorder of the RoIs"):
        with_ohem(faster_rcnn(), recorder, rpn_sampler=recorder)


@pytest.mark.parametrize("batch", [BATCHES["usual"], BATCHES["no object"]], ids=["usual", "no object"])
def test_nothing_chosen_gives_zero_with_a_graph(batch: Batch) -> None:
    """The loss of torchvision is NaN then. DistributedDataParallel waits for the gradient of every parameter."""
    model = mined(nothing)
    losses, gradients = step(model, batch)
    assert losses["loss_objectness"] == losses["loss_rpn_box_reg"] == 0
    assert gradients.keys() == step(faster_rcnn(), batch)[1].keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all()
        assert not name.startswith("rpn.") or not gradient.any()


def test_autocast_ranks_in_float32_and_keeps_all_gradients() -> None:
    model = mined(HARDEST, OHEMSampler(8))
    _, expected = step(model, BATCHES["usual"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, gradients = step(model, BATCHES["usual"])
    assert gradients.keys() == expected.keys()
    assert all(value.isfinite().all() for value in [*losses.values(), *gradients.values()])
    record = model.rpn.mining
    assert record.losses.dtype == record.rois.boxes.dtype == torch.float32
    assert record.losses.unique().numel() > record.losses.bfloat16().unique().numel()


def test_double_precision_gives_the_same_losses() -> None:
    images, targets = BATCHES["usual"]
    floating = [{k: v.double() if v.is_floating_point() else v for k, v in target.items()} for target in targets]
    model = with_ohem(faster_rcnn().double(), EVERY_ROI, rpn_sampler=HARDEST)
    losses, _ = step(model, ([image.double() for image in images], floating))
    plain, _ = step(faster_rcnn().double(), ([image.double() for image in images], floating))
    expected, _ = step(mined(HARDEST), BATCHES["usual"])
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        assert losses[name].dtype == plain[name].dtype
        assert float(losses[name]) == pytest.approx(float(expected[name]), rel=1e-3), name


# --- objects to ignore


def test_anchors_on_ignored_objects_are_not_mined() -> None:
    model = mined(AllSampler())
    box = torch.tensor([[20.0, 20, 36, 36], [60, 30, 80, 50]])
    anchors = [torch.cat([box, torch.tensor([[0.0, 0, 4, 4], [16, 16, 40, 40]])])]
    target = {"boxes": box, "labels": torch.tensor([1, 2]), "ignore": torch.tensor([True, False])}
    (labels,), _ = model.rpn.assign_targets_to_anchors(anchors, [target])
    assert labels.tolist() == [-1, 1, 0, -1]  # the last anchor covers the ignored object
    step(model, (mini_batch((2,))[0], [target]))
    rois = model.rpn.mining.rois
    on_object = (rois.boxes[:, :2] < 36).all(dim=1) & (rois.boxes[:, 2:] > 20).all(dim=1) & (rois.ious < 0.1)
    assert (rois.labels == -1).sum() > 8
    assert not torch.isin(model.rpn.mining.chosen, (rois.labels == -1).nonzero()[:, 0]).any()
    assert (rois.labels[on_object] <= 0).all()
    assert rois.ious.max() < 1  # the IoU is with the other object


def test_all_anchors_in_a_crowd() -> None:
    model, (images, _) = mined(HARDEST, OHEMSampler(8)), mini_batch((1,))
    region = {"boxes": torch.tensor([[-99.0, -99, 199, 199]]), "labels": torch.tensor([1]), "ignore": torch.tensor([1])}
    losses, _ = step(model, (images, [region]))
    assert (model.rpn.mining.rois.labels == -1).all()
    assert losses["loss_objectness"] == losses["loss_rpn_box_reg"] == 0
    assert all(loss.isfinite() for loss in losses.values())


# --- what is refused


class OtherRPN(RegionProposalNetwork):  # type: ignore[misc]
    """An RPN that may have other losses."""


def test_other_rpn_is_refused_only_if_it_is_to_be_mined() -> None:
    model = faster_rcnn()
    model.rpn.__class__ = OtherRPN
    with pytest.raises(TypeError, match="RegionProposalNetwork, and not in OtherRPN"):
        with_ohem(model, OHEMSampler(8), rpn_sampler=HARDEST)
    assert not hasattr(model, "mining")
    step(with_ohem(model, OHEMSampler(8)), BATCHES["usual"])
    assert type(model.rpn) is OtherRPN


def test_rpn_that_is_replaced_later_is_refused() -> None:
    model = mined(HARDEST)
    model.rpn = faster_rcnn().rpn
    twin = pickle.loads(pickle.dumps(model))
    for detector in (model, twin):
        with pytest.raises(TypeError, match="RegionProposalNetwork, was replaced after with_ohem"):
            step(detector, BATCHES["usual"])
    step(with_ohem(model, OHEMSampler(8), rpn_sampler=HARDEST), BATCHES["usual"])
    assert type(model.rpn) is OHEMRPN


def test_unknown_version_of_torchvision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ohem.integrations.rpn._PARAMETERS", {"compute_loss": ["self", "objectness", "labels"]}
    )  # as if torchvision's had others
    with pytest.raises(TypeError, match=r"RegionProposalNetwork.compute_loss of torchvision \d"):
        mined(HARDEST)


@pytest.mark.parametrize("sampler", [OHEMSampler, 256, "ohem"])
def test_invalid_samplers_are_refused_at_once(sampler: Any) -> None:
    with pytest.raises(TypeError, match=r"rpn_sampler must be .*give OHEMSampler\(256, nms_iou=None\)"):
        mined(sampler)


def test_sampler_must_not_choose_an_ignored_anchor() -> None:
    with pytest.raises(ValueError, match="chose an anchor whose label is -1"):
        step(mined(lambda rois, losses: torch.arange(len(rois))), BATCHES["usual"])


def test_detectors_without_an_rpn_have_no_such_option() -> None:
    with pytest.raises(TypeError, match="no option 'rpn_sampler' for RetinaNet"):
        with_ohem(one_stage.make("retinanet"), rpn_sampler=RatioSampler())
