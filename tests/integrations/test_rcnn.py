"""Mining in torchvision's R-CNN detectors: losses and gradients equal torchvision's own on the chosen RoIs."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from ohem import AllSampler, OHEMSampler, RandomSampler, RoIs, RoISampler, with_ohem
from tests.helpers.contracts import EVERY_SAMPLER
from tests.helpers.tiny_rcnn import BATCHES, MODELS, Batch, faster_rcnn, mini_batch, step

every_sampler = pytest.mark.parametrize("sampler", EVERY_SAMPLER.values(), ids=EVERY_SAMPLER)
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}")


def choose_in_torchvision(model: FasterRCNN, chosen: Tensor, rois: RoIs) -> FasterRCNN:
    """Makes the random sampling of `model`, which has no mining, return the RoIs `chosen`."""
    indices = [chosen[rois.images[chosen] == i] - int((rois.images < i).sum()) for i in range(rois.num_images)]
    assert type(model.roi_heads) is RoIHeads
    model.roi_heads.subsample = lambda labels: indices
    return model


@every_sampler
@every_model
def test_losses_are_those_of_torchvision_on_the_chosen(make: Callable[[], FasterRCNN], sampler: RoISampler) -> None:
    """Covers all losses, masks and keypoints included, all gradients, and the statistics of batch norm."""
    mined = with_ohem(make(), sampler)
    losses, gradients = step(mined, BATCHES["usual"])
    rois, chosen = mined.mining.rois, mined.mining.chosen
    plain = choose_in_torchvision(make(), chosen.sort().values, rois)
    expected_losses, expected = step(plain, BATCHES["usual"])
    assert losses == expected_losses
    assert_close(gradients, expected)
    assert_close(dict(mined.named_buffers()), dict(plain.named_buffers()))
    assert (rois.labels == -1).any()
    assert (rois.labels[chosen] > 0).any()


@every_sampler
def test_gradient_is_that_of_the_masked_loss_of_all_rois(sampler: RoISampler) -> None:
    mined = with_ohem(faster_rcnn(), sampler)
    losses, gradients = step(mined, BATCHES["usual"])
    chosen = mined.mining.chosen

    twin = faster_rcnn()
    torch.manual_seed(0)
    scores, deltas, labels, targets, rpn_losses = one_pass(twin, BATCHES["usual"])
    # torchvision's function, called with one RoI, returns the loss of that RoI.
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


def test_all_sampler_gives_torchvisions_loss_of_all_proposals() -> None:
    losses, _ = step(with_ohem(faster_rcnn(), AllSampler()), BATCHES["usual"])
    torch.manual_seed(0)
    scores, deltas, labels, targets, _ = one_pass(faster_rcnn(), BATCHES["usual"])
    valid = labels >= 0
    assert 100 < int(valid.sum()) < len(valid)
    classifier, box_reg = fastrcnn_loss(scores[valid], deltas[valid], [labels[valid]], [targets[valid]])
    torch.testing.assert_close(losses["loss_classifier"], classifier.detach())
    torch.testing.assert_close(losses["loss_box_reg"], box_reg.detach())


def one_pass(model: FasterRCNN, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Returns scores, regressions, labels and targets of every RoI, with gradient, and the losses of the RPN."""
    images, targets = model.transform(*batch)
    features = model.backbone(images.tensors)
    proposals, losses = model.rpn(images, features, targets)
    heads = model.roi_heads
    boxes = heads.add_gt_proposals(proposals, [target["boxes"] for target in targets])
    truth = [target["boxes"] for target in targets]
    matched, labels = heads.assign_targets_to_proposals(boxes, truth, [target["labels"] for target in targets])
    deltas = heads.box_coder.encode([of_image[i] for of_image, i in zip(truth, matched, strict=True)], boxes)
    scores, regression = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, images.image_sizes)))
    return scores, regression, torch.cat(labels), torch.cat(deltas), losses


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("name", ["ohem", "joint", "release", "separate", "rank"])
def test_ranking_loss_equals_training_loss(name: str) -> None:
    """The mean loss of the chosen, in the read-only pass, is the loss of the box head."""
    model = with_ohem(faster_rcnn(), EVERY_SAMPLER[name])
    losses, _ = step(model, BATCHES["usual"])
    numbers = model.mining.statistics()
    assert numbers["loss_chosen"] == pytest.approx(float(losses["loss_classifier"] + losses["loss_box_reg"]), rel=1e-5)
    assert numbers["loss_chosen"] != pytest.approx(numbers["loss_all"], rel=1e-3)


def test_all_proposals_and_the_ground_truth_are_ranked() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    forwards: list[tuple[int, bool]] = []
    model.roi_heads.box_head.register_forward_hook(
        lambda _, inputs, output: forwards.append((len(inputs[0]), output.requires_grad))
    )
    step(model, mini_batch((3, 0)))
    rois = model.mining.rois
    per_image = torch.bincount(rois.images)
    assert 50 < per_image.min() <= per_image.max() <= 63
    assert forwards == [(len(rois), False), (16, True)]
    assert rois.ious[rois.images == 0][-3:].tolist() == pytest.approx([1, 1, 1])  # torchvision appends them
    assert not rois.ious[rois.images == 1].any()
    assert not rois.targets[rois.labels <= 0].any()
    assert rois.targets.isfinite().all()


def test_joint_mining_may_choose_more_from_one_image() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(20, per_image=False, nms_iou=None))
    losses, _ = step(model, mini_batch((3, 0)))
    counts = torch.bincount(model.mining.rois.images[model.mining.chosen], minlength=2).tolist()
    assert sum(counts) == 40
    assert counts[0] != counts[1]
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_random_sampling_differs_by_seed(seed: int) -> None:
    model = with_ohem(faster_rcnn(), RandomSampler(8))
    _, one = step(model, BATCHES["usual"], seed)
    _, other = step(model, BATCHES["usual"], seed + 1)
    assert not torch.equal(one["roi_heads.box_head.fc6.weight"], other["roi_heads.box_head.fc6.weight"])


@every_model
@pytest.mark.parametrize("batch", [BATCHES["usual"], BATCHES["no object"]], ids=["usual", "no object"])
def test_nothing_chosen_gives_zero_with_a_graph(make: Callable[[], FasterRCNN], batch: Batch) -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    model = with_ohem(make(), lambda rois, losses: torch.zeros(0, dtype=torch.int64))
    losses, gradients = step(model, batch)
    assert losses["loss_classifier"] == losses["loss_box_reg"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    assert gradients.keys() == step(make(), batch)[1].keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all()
        assert not name.startswith("roi_heads") or not gradient.any()


def test_no_proposal_and_no_object() -> None:
    """The loss of torchvision itself is NaN."""
    model = with_ohem(faster_rcnn(rpn_score_thresh=2.0), OHEMSampler(8))
    losses, _ = step(model, BATCHES["no object"])
    assert len(model.mining.rois) == 0
    assert all(loss.isfinite() for loss in losses.values())
    assert step(faster_rcnn(rpn_score_thresh=2.0), BATCHES["no object"])[0]["loss_classifier"].isnan()


def test_autocast_ranks_in_float32_and_keeps_all_gradients() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    _, expected = step(model, BATCHES["usual"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, gradients = step(model, BATCHES["usual"])
    assert gradients.keys() == expected.keys()
    assert all(value.isfinite().all() for value in [*losses.values(), *gradients.values()])
    assert model.mining.losses.dtype == torch.float32
    assert len(model.mining.losses.unique()) > len(model.mining.losses.bfloat16().unique())


def test_double_precision_gives_the_same_losses() -> None:
    model = with_ohem(faster_rcnn().double(), OHEMSampler(8))
    images, targets = BATCHES["usual"]
    floating = [{k: v.double() if v.is_floating_point() else v for k, v in target.items()} for target in targets]
    losses, _ = step(model, ([image.double() for image in images], floating))
    expected, _ = step(with_ohem(faster_rcnn(), OHEMSampler(8)), BATCHES["usual"])
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-3), name


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
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
    twin.roi_heads.box_head.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    (losses, _), (others, _) = (step(detector, BATCHES["usual"]) for detector in (model, twin))
    count = len(twin.mining.rois)
    assert sum(rows[:-1]) == count
    assert max(rows[:-1]) <= chunk
    torch.testing.assert_close(twin.mining.losses, model.mining.losses)
    assert_close(others, losses)
