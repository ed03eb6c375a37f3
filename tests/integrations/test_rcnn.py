"""Mining in torchvision's R-CNN family: by identity with torchvision's own losses on what was chosen, and by limits."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from ohem import AllSampler, OHEMSampler, RandomSampler, RoIs, RoISampler, with_ohem
from ohem.integrations.rcnn import OHEMRoIHeads
from ohem.recording import Recorder
from tests.contracts import EVERY_SAMPLER, check_detector
from tests.integrations.tiny_rcnn import CLASSES, MODELS, Batch, faster_rcnn, mini_batch, normalised_rcnn

BATCHES = {
    "usual": mini_batch(),
    "the second has no object": mini_batch((3, 0)),
    "no object": mini_batch((0, 0)),
    "one object": mini_batch((1,)),
    "more objects than are chosen": mini_batch((12, 20)),
}

every_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def step(model: nn.Module, batch: Batch, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter that has one."""
    model.train().zero_grad()
    torch.manual_seed(seed)
    losses = model(*batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


def on_torchvisions_own_path(model: FasterRCNN, chosen: Tensor, rois: RoIs) -> FasterRCNN:
    """`model`, without mining, in which the random draw gives these RoIs."""
    parts = [chosen[rois.images[chosen] == i] - int((rois.images < i).sum()) for i in range(rois.num_images)]
    assert type(model.roi_heads) is RoIHeads
    model.roi_heads.subsample = lambda labels: parts
    return model


# ------------------------------------------------------------------------------------------------------ what it trains


@every_sampler
@every_model
def test_the_loss_is_torchvisions_on_the_chosen(make: Callable[[], FasterRCNN], sampler: RoISampler) -> None:
    """Every loss and every gradient, masks and keypoints included; batch norm has seen the chosen alone."""
    mined = with_ohem(make(), sampler)
    losses, gradients = step(mined, BATCHES["usual"])
    rois, chosen = mined.mining.rois, mined.mining.chosen
    plain = on_torchvisions_own_path(make(), chosen.sort().values, rois)
    expected_losses, expected = step(plain, BATCHES["usual"])
    assert losses == expected_losses
    assert_close(gradients, expected)
    assert_close(dict(mined.named_buffers()), dict(plain.named_buffers()))
    assert (rois.labels == -1).any()
    assert (rois.labels[chosen] > 0).any()


@every_sampler
def test_the_gradient_is_that_of_the_masked_one_pass_loss(sampler: RoISampler) -> None:
    mined = with_ohem(faster_rcnn(), sampler)
    losses, gradients = step(mined, BATCHES["usual"])
    chosen = mined.mining.chosen

    twin = faster_rcnn()
    torch.manual_seed(0)
    scores, deltas, labels, targets, rpn_losses = one_pass(twin, BATCHES["usual"])
    # torchvision's formula on one RoI alone is the loss of that RoI.
    every = [
        torch.stack(fastrcnn_loss(scores[i : i + 1], deltas[i : i + 1], [labels[i : i + 1]], [targets[i : i + 1]]))
        for i in chosen.tolist()
    ]
    classifier, box_reg = torch.stack(every).sum(dim=0) / len(chosen)
    (classifier + box_reg + sum(rpn_losses.values())).backward()
    assert_close(
        losses, {"loss_classifier": classifier.detach(), "loss_box_reg": box_reg.detach(), **detached(rpn_losses)}
    )
    assert_close(gradients, {name: p.grad for name, p in twin.named_parameters() if p.grad is not None})


def test_all_is_torchvisions_formula_on_all_proposals() -> None:
    losses, _ = step(with_ohem(faster_rcnn(), AllSampler()), BATCHES["usual"])
    torch.manual_seed(0)
    scores, deltas, labels, targets, _ = one_pass(faster_rcnn(), BATCHES["usual"])
    valid = labels >= 0
    assert 100 < int(valid.sum()) < len(valid)
    classifier, box_reg = fastrcnn_loss(scores[valid], deltas[valid], [labels[valid]], [targets[valid]])
    torch.testing.assert_close(losses["loss_classifier"], classifier.detach())
    torch.testing.assert_close(losses["loss_box_reg"], box_reg.detach())


def one_pass(model: FasterRCNN, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Scores, regressions, labels and targets of every RoI, with gradient, and the losses of the proposals."""
    images, targets = model.transform(*batch)
    features = model.backbone(images.tensors)
    proposals, losses = model.rpn(images, features, targets)
    heads = model.roi_heads
    boxes = heads.add_gt_proposals(proposals, [each["boxes"] for each in targets])
    truth = [each["boxes"] for each in targets]
    matched, labels = heads.assign_targets_to_proposals(boxes, truth, [each["labels"] for each in targets])
    deltas = heads.box_coder.encode([each[i] for each, i in zip(truth, matched, strict=True)], boxes)
    scores, regression = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, images.image_sizes)))
    return scores, regression, torch.cat(labels), torch.cat(deltas), losses


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("name", ["ohem", "joint", "release", "separate", "rank"])
def test_what_ranks_is_what_trains(name: str) -> None:
    """The mean loss of the chosen, in the pass without gradient, is the loss of the box head."""
    model = with_ohem(faster_rcnn(), EVERY_SAMPLER[name])
    losses, _ = step(model, BATCHES["usual"])
    numbers = model.mining.statistics()
    assert numbers["loss_chosen"] == pytest.approx(float(losses["loss_classifier"] + losses["loss_box_reg"]), rel=1e-5)
    assert numbers["loss_chosen"] != pytest.approx(numbers["loss_all"], rel=1e-3)


def test_all_proposals_and_the_ground_truth_are_ranked() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    seen: list[tuple[int, bool]] = []
    model.roi_heads.box_head.register_forward_hook(
        lambda _, given, out: seen.append((len(given[0]), out.requires_grad))
    )
    step(model, mini_batch((3, 0)))
    rois = model.mining.rois
    per_image = torch.bincount(rois.images)
    assert 50 < per_image.min() <= per_image.max() <= 63
    assert seen == [(len(rois), False), (16, True)]
    assert rois.ious[rois.images == 0][-3:].tolist() == pytest.approx([1, 1, 1])  # torchvision appends them
    assert not rois.ious[rois.images == 1].any()
    assert not rois.targets[rois.labels <= 0].any()
    assert rois.targets.isfinite().all()


def test_images_share_the_batch_unevenly_if_mined_jointly() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(20, per_image=False, nms_iou=None))
    losses, _ = step(model, mini_batch((3, 0)))
    counts = torch.bincount(model.mining.rois.images[model.mining.chosen], minlength=2).tolist()
    assert sum(counts) == 40
    assert counts[0] != counts[1]
    assert all(loss.isfinite() for loss in losses.values())


# --------------------------------------------------------------------------------------------- what the user knows


@pytest.mark.parametrize(
    ("make", "sampler"),
    [
        *(pytest.param(faster_rcnn, sampler, id=f"faster-{name}") for name, sampler in EVERY_SAMPLER.items()),
        *(pytest.param(make, OHEMSampler(8), id=f"{name}-ohem") for name, make in MODELS.items() if name != "faster"),
    ],
)
def test_everything_else_stays_as_it_is(make: Callable[[], FasterRCNN], sampler: RoISampler) -> None:
    check_detector(make, sampler, BATCHES)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_sampling_differs_by_seed(seed: int) -> None:
    model = with_ohem(faster_rcnn(), RandomSampler(8))
    _, one = step(model, BATCHES["usual"], seed)
    _, other = step(model, BATCHES["usual"], seed + 1)
    assert not torch.equal(one["roi_heads.box_head.fc6.weight"], other["roi_heads.box_head.fc6.weight"])


@every_model
@pytest.mark.parametrize("batch", [BATCHES["usual"], BATCHES["no object"]], ids=["usual", "no object"])
def test_nothing_chosen_is_a_loss_of_zero_with_a_graph(make: Callable[[], FasterRCNN], batch: Batch) -> None:
    """As DDP needs it: a parameter without gradient would be waited for."""
    model = with_ohem(make(), lambda rois, losses: torch.zeros(0, dtype=torch.int64))
    losses, gradients = step(model, batch)
    assert losses["loss_classifier"] == losses["loss_box_reg"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    assert gradients.keys() == step(make(), batch)[1].keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all()
        assert not name.startswith("roi_heads") or not gradient.any()


def test_no_proposal_and_no_object() -> None:
    """torchvision itself gives NaN."""
    model = with_ohem(faster_rcnn(rpn_score_thresh=2.0), OHEMSampler(8))
    losses, _ = step(model, BATCHES["no object"])
    assert len(model.mining.rois) == 0
    assert all(loss.isfinite() for loss in losses.values())
    assert step(faster_rcnn(rpn_score_thresh=2.0), BATCHES["no object"])[0]["loss_classifier"].isnan()


def test_bfloat16() -> None:
    """Ranked in float32, and no parameter loses its gradient to the pass without."""
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    _, expected = step(model, BATCHES["usual"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, gradients = step(model, BATCHES["usual"])
    assert gradients.keys() == expected.keys()
    assert all(value.isfinite().all() for value in [*losses.values(), *gradients.values()])
    assert model.mining.losses.dtype == torch.float32
    assert len(model.mining.losses.unique()) > len(model.mining.losses.bfloat16().unique())


def test_gradient_checkpointing() -> None:
    model, twin = (with_ohem(faster_rcnn(), OHEMSampler(8)) for _ in range(2))
    head = twin.roi_heads.box_head
    head.forward = partial(checkpoint, head.forward, use_reentrant=False)
    losses, gradients = step(model, BATCHES["usual"])
    others, other_gradients = step(twin, BATCHES["usual"])
    assert losses == others
    assert_close(other_gradients, gradients)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_change_nothing(chunk: int) -> None:
    model, twin = (with_ohem(faster_rcnn(), OHEMSampler(8)) for _ in range(2))
    twin.roi_heads.chunk = chunk
    rows: list[int] = []
    twin.roi_heads.box_head.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    (losses, _), (others, _) = (step(each, BATCHES["usual"]) for each in (model, twin))
    count = len(twin.mining.rois)
    assert sum(rows[:-1]) == count
    assert max(rows[:-1]) <= chunk
    torch.testing.assert_close(twin.mining.losses, model.mining.losses)
    assert_close(others, losses)


def test_double_precision() -> None:
    model = with_ohem(faster_rcnn().double(), OHEMSampler(8))
    images, targets = BATCHES["usual"]
    floating = [{k: v.double() if v.is_floating_point() else v for k, v in target.items()} for target in targets]
    losses, _ = step(model, ([image.double() for image in images], floating))
    expected, _ = step(with_ohem(faster_rcnn(), OHEMSampler(8)), BATCHES["usual"])
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-3), name


def test_features_are_not_kept() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    before = set(vars(model.roi_heads))
    step(model, BATCHES["usual"])
    assert set(vars(model.roi_heads)) == before

    def fail(rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        step(with_ohem(model, fail), BATCHES["usual"])
    assert set(vars(model.roi_heads)) == before


def test_the_losses_of_a_validation_set() -> None:
    """In train mode without gradient, as many do."""
    model = with_ohem(normalised_rcnn(), OHEMSampler(8))
    with torch.no_grad():
        assert sum(model(*BATCHES["usual"]).values()).isfinite()


def test_another_sampler_takes_the_place_of_the_first() -> None:
    model = with_ohem(with_ohem(faster_rcnn(), OHEMSampler(8)), AllSampler())
    expected, _ = step(with_ohem(faster_rcnn(), AllSampler()), BATCHES["usual"])
    assert step(model, BATCHES["usual"])[0] == expected
    assert model.mining is model.roi_heads.mining
    assert isinstance(model.mining.sampler, AllSampler)


def test_a_copy_trains_apart_from_its_original() -> None:
    """As the average of weights does."""
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    twin = copy.deepcopy(model)
    step(twin, BATCHES["one object"])
    assert model.mining.statistics() == {}
    assert twin.mining is twin.roi_heads.mining
    assert twin.mining.statistics()["chosen"] == 8


def test_the_class_of_the_model_stays() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    assert type(model) is FasterRCNN
    assert isinstance(model.roi_heads, RoIHeads)
    assert type(pickle.loads(pickle.dumps(model)).roi_heads) is OHEMRoIHeads


# -------------------------------------------------------------------------------------------- torchvision's own models


@pytest.mark.parametrize(
    "build",
    [
        detection.fasterrcnn_resnet50_fpn,
        detection.fasterrcnn_resnet50_fpn_v2,
        detection.fasterrcnn_mobilenet_v3_large_fpn,
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        detection.maskrcnn_resnet50_fpn,
        detection.maskrcnn_resnet50_fpn_v2,
        detection.keypointrcnn_resnet50_fpn,
    ],
    ids=lambda build: build.__name__,
)
def test_every_builder(build: Callable[..., FasterRCNN]) -> None:
    with torch.device("meta"):  # no weights are made
        model = build(weights=None, weights_backbone=None)
    names = list(model.state_dict())
    assert type(with_ohem(model, OHEMSampler(128)).roi_heads) is OHEMRoIHeads
    assert list(model.state_dict()) == names


def test_a_loop_as_in_torchvisions_references() -> None:
    """Warm-up, `train_one_epoch` and a checkpoint: the loss falls."""
    torch.manual_seed(0)
    build = partial(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn, weights=None, weights_backbone=None, num_classes=CLASSES
    )
    sizes = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 100}
    model = with_ohem(build(**sizes), OHEMSampler(batch_size=16))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=3)
    totals = []
    model.train()
    for _ in range(6):
        images, targets = BATCHES["usual"]
        loss_dict = model(list(images), [dict(target) for target in targets])
        losses = sum(loss for loss in loss_dict.values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        warm_up.step()
        totals.append(losses.item())
    assert totals[-1] < totals[0]
    assert model.mining.statistics()["chosen"] <= 32
    plain = build(**sizes)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert len(plain.eval()(BATCHES["usual"][0])) == 2


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_scripting_is_refused_before_and_after() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    with pytest.raises(TypeError, match="load its state_dict into one without"):
        torch.jit.script(model.eval())
    assert type(model.roi_heads) is OHEMRoIHeads
    with pytest.raises(TypeError, match="scripted"):
        with_ohem(torch.jit.script(faster_rcnn().eval()), OHEMSampler(8))


@pytest.mark.filterwarnings("ignore:`torch.nn.DataParallel:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrapped_models_are_refused_with_the_order_of_things(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(TypeError, match="FasterRCNN before it is wrapped"):
        with_ohem(wrap(faster_rcnn()), OHEMSampler(8))


@pytest.mark.parametrize("sampler", [OHEMSampler, 128, "ohem"])
def test_what_is_no_sampler_is_refused_at_once(sampler: Any) -> None:
    with pytest.raises(TypeError, match=r"give OHEMSampler\(\)"):
        with_ohem(faster_rcnn(), sampler)


@pytest.mark.parametrize("chosen", [[0, 1], torch.ones(3, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)])
def test_a_sampler_must_give_indices(chosen: Any) -> None:
    with pytest.raises(TypeError, match="returns the indices of RoIs, an int64 vector"):
        step(with_ohem(faster_rcnn(), lambda rois, losses: chosen), BATCHES["usual"])


def test_a_recorder_of_ones_own_is_the_one_that_records() -> None:
    mine = Recorder(OHEMSampler(8))
    model = with_ohem(faster_rcnn(), mine)
    step(model, BATCHES["usual"])
    assert model.mining is mine
    assert mine.statistics()["survivors"] >= 8


def test_unknown_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"FasterRCNN.*not Linear: .*with_ohem.register\(Linear\)"):
        with_ohem(nn.Linear(1, 1), OHEMSampler(8))


class Cascade(RoIHeads):  # type: ignore[misc]
    """RoI heads with losses of their own."""


def test_other_roi_heads_are_refused() -> None:
    model = faster_rcnn()
    model.roi_heads.__class__ = Cascade
    with pytest.raises(TypeError, match="RoIHeads, and not Cascade"):
        with_ohem(model, OHEMSampler(8))
    assert type(model.roi_heads) is Cascade


def test_another_torchvision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def subsample(self: Any, labels: Any, boxes: Any) -> None: ...

    monkeypatch.setattr(RoIHeads, "subsample", subsample)
    model = faster_rcnn()
    with pytest.raises(TypeError, match=r"RoIHeads.subsample of torchvision \d"):
        with_ohem(model, OHEMSampler(8))
    assert type(model.roi_heads) is RoIHeads


# --------------------------------------------------------------------------------------------------- several processes


def _process(rank: int, folder: str) -> None:
    """Images of its own, in the first step without an object in one process, and more chunks in the other."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = with_ohem(normalised_rcnn(), OHEMSampler(8, per_image=False))
    model.roi_heads.chunk = 100 if rank == 0 else 10
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01)
    for number, objects in enumerate([(2, 3 * rank), (1, 2)]):
        optimizer.zero_grad()
        sum(parallel(*mini_batch(objects if rank else (0, 0), seed=2 * number + rank)).values()).backward()
        optimizer.step()
    # Running statistics are those of the first process, from the next step on.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    torch.save((weights, model.mining.statistics()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    (weights, numbers), (others, other_numbers) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    before = dict(normalised_rcnn().named_parameters())
    assert weights.keys() == others.keys() == before.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
        assert not torch.equal(weight, before[name]), name
    assert (numbers["chosen"], other_numbers["chosen"]) == (16, 16)
    assert numbers["foreground"] == 0 < other_numbers["foreground"]


def test_ignored_objects_are_neither_foreground_nor_background() -> None:
    model, (images, targets) = with_ohem(faster_rcnn(), AllSampler()), mini_batch((2, 2))
    targets = [{**target, "ignore": torch.tensor([True, False])} for target in targets]
    step(model, (images, targets))
    rois = model.mining.rois
    assert rois is not None
    for number, target in enumerate(targets):
        here = rois.images == number
        out = (rois.boxes[:, None] == target["boxes"][0]).all(dim=2)[:, 0] & here  # the ground truth itself
        assert rois.labels[out].tolist() == [-1]
        assert rois.labels[here].max() == target["labels"][1]
    assert not torch.isin(model.mining.chosen, torch.nonzero(rois.labels == -1)[:, 0]).any()
    model = with_ohem(faster_rcnn(), AllSampler())
    region = {"boxes": torch.tensor([[0.0, 0, 96, 64]]), "labels": torch.tensor([1]), "ignore": torch.tensor([True])}
    step(model, (images[:1], [region]))
    assert model.mining.rois is not None
    assert (model.mining.rois.labels == -1).all()  # everything lies in the crowd
    assert len(model.mining.chosen) == 0


@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
def test_ignored_objects_are_nothing_to_the_rpn(key: str) -> None:
    model, (images, _) = with_ohem(faster_rcnn(), AllSampler()), mini_batch((2,))
    plain = {"boxes": torch.tensor([[10.0, 10, 30, 30], [60, 30, 80, 50]]), "labels": torch.tensor([1, 2])}
    anchors = [torch.cat([plain["boxes"], torch.tensor([[0.0, 0, 4, 4], [0, 0, 50, 50]])])]
    marked = {**plain, key: torch.tensor([1, 0])}
    (labels,), (matched,) = model.rpn.assign_targets_to_anchors(anchors, [marked])
    assert labels.tolist() == [-1, 1, 0, 0]  # the last is an anchor in which the object is small
    assert torch.equal(matched[1], plain["boxes"][1])
    (usual,), _ = faster_rcnn().rpn.assign_targets_to_anchors(anchors, [plain])
    assert usual.tolist() == [1, 1, 0, 0]
    step(model, (images, [marked]))
    assert set(model.mining.rois.labels.unique().tolist()) >= {-1, 2}


def test_an_rpn_whose_anchors_are_all_on_a_crowd_has_a_loss() -> None:
    model, (images, _) = with_ohem(faster_rcnn(), OHEMSampler(8)), mini_batch((1,))
    region = {"boxes": torch.tensor([[-99.0, -99, 199, 199]]), "labels": torch.tensor([1]), "ignore": torch.tensor([1])}
    losses, _ = step(model, (images, [region]))
    assert all(loss.isfinite() for loss in losses.values())
