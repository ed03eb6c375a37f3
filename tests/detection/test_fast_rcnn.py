"""The detector: its two implementations of OHEM, its read-only pass, and pooling."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_pool

from ohem.detection import fast_rcnn, roi_networks
from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.regions import FOREGROUND, Regions
from ohem.detection.windows import FARTHEST, distinct
from ohem.losses import roi_losses
from ohem.recorder import Recorder
from ohem.rois import RoIs, match
from ohem.samplers import AllSampler, OHEMSampler, RandomSampler, RoISampler
from tests.detection.toy_detector import (
    CLASSES,
    MINERS,
    POOL,
    STRIDE,
    Implementation,
    assert_close,
    batch_norm_head,
    detector,
    losses_and_gradients,
    mini_batch,
    nothing,
    per_class,
    plain_head,
    rows_of_roi_network,
)

# -------------------------------------------------------------------------------------- two implementations, one loss


@pytest.mark.parametrize("regions", [None, Regions(foreground=FOREGROUND)], ids=["box", "regions"])
@pytest.mark.parametrize("sampler", MINERS, ids=str)
def test_both_implementations_give_the_same_gradients(sampler: OHEMSampler, regions: Regions | None) -> None:
    """Compares in float64, where the two do not round to different sides of a tie."""
    batch = mini_batch()
    recorders = Recorder(sampler), Recorder(sampler)
    (losses, gradients), (masked_losses, masked_gradients) = (
        losses_and_gradients(detector(recorder, implementation, regions=regions).double(), batch)
        for recorder, implementation in zip(recorders, ("read_only", "loss_layer"), strict=True)
    )
    chosen, others = (recorder.chosen for recorder in recorders)
    assert chosen is not None
    assert others is not None
    assert chosen.tolist() == others.tolist()
    assert recorders[0].rois is not None
    assert 0 < len(chosen) < int((recorders[0].rois.labels >= 0).sum())
    assert (recorders[0].rois.labels == -1).any()
    assert_close(losses, masked_losses)
    assert_close(gradients, masked_gradients)
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
def test_regions_of_background_are_trained_on_besides_the_chosen(implementation: Implementation) -> None:
    """Compares with the mean over both; a region that covers an object is left out."""
    images, proposals, targets = mini_batch()
    model = detector(sampler := Recorder(OHEMSampler(batch_size=4)), implementation).double()
    region = torch.tensor([[1.0, 2.0, 9.0, 12.0]])
    assert match([region], targets[1:2], add_ground_truth=False).labels.tolist() == [0]
    given = [targets[0], {**targets[1], "background": torch.cat([region, targets[1]["boxes"][:1]])}, *targets[2:]]
    losses, gradients = losses_and_gradients(model, (images, proposals, given))
    assert sampler.rois is not None
    assert sampler.chosen is not None

    model.zero_grad()
    features = model.backbone(images)
    extra = match([region[:0], region, *(region[:0] for _ in images[2:])], targets, add_ground_truth=False)
    parts = [roi_losses(*model.head(features, rois), rois) for rois in (sampler.rois[sampler.chosen], extra)]
    count = len(sampler.chosen) + 1
    by_hand = [torch.cat(column).sum() / count for column in zip(*parts, strict=True)]
    sum(by_hand).backward()
    assert_close(losses, dict(zip(("loss_classifier", "loss_box_reg"), by_hand, strict=True)))
    assert_close(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
@pytest.mark.parametrize("sampler", [*MINERS, AllSampler(), RandomSampler(8)], ids=str)
def test_the_gradient_is_of_the_mean_over_the_chosen(sampler: RoISampler, implementation: Implementation) -> None:
    """Compares with one pass over all RoIs, with the mean of their losses written out."""
    batch, recorder = mini_batch(), Recorder(sampler)
    model = detector(recorder, implementation).double()
    losses, gradients = losses_and_gradients(model, batch)
    assert recorder.rois is not None
    assert recorder.chosen is not None

    model.zero_grad()
    classifier, box_reg = roi_losses(*model.head(model.backbone(batch[0]), recorder.rois), recorder.rois)
    by_hand = {
        "loss_classifier": classifier[recorder.chosen].sum() / len(recorder.chosen),
        "loss_box_reg": box_reg[recorder.chosen].sum() / len(recorder.chosen),
    }
    (by_hand["loss_classifier"] + by_hand["loss_box_reg"]).backward()
    assert_close(losses, by_hand)
    assert_close(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
def test_all_rois_is_the_plain_mean(implementation: Implementation) -> None:
    """Checks targets that are normalised per class, without the ignored RoIs."""
    images, proposals, truths = mini_batch()
    mean, std = per_class()
    model = detector(AllSampler(), implementation, box_mean=mean, box_std=std)
    losses = model(images, proposals, truths)
    rois = match(proposals, truths, mean=mean, std=std)
    assert len(rois) == 2 * 60 + 4  # with the ground truth that is not ignored
    rois = rois[rois.labels >= 0]
    scores, deltas = model.head(model.backbone(images), rois)
    torch.testing.assert_close(losses["loss_classifier"], functional.cross_entropy(scores, rois.labels))
    own = deltas[torch.arange(len(rois)), rois.labels][rois.foreground]
    box = functional.smooth_l1_loss(own, rois.targets[rois.foreground], reduction="sum") / len(rois)
    torch.testing.assert_close(losses["loss_box_reg"], box)
    assert box > 0


def test_mining_sees_all_rois_and_training_only_the_chosen() -> None:
    batch, recorder = mini_batch(), Recorder(OHEMSampler(8))
    model = detector(recorder)
    with rows_of_roi_network(model) as seen:
        model(*batch)
    assert recorder.rois is not None
    assert len(seen) == 2
    assert seen[0] == (_distinct(recorder.rois), False)
    assert seen[1] == (16, True)

    model = detector(Recorder(OHEMSampler(8)), "loss_layer")
    with rows_of_roi_network(model) as seen:
        model(*batch)
    assert seen == [(len(recorder.rois), True)]


def test_sampling_at_random_needs_no_second_pass() -> None:
    model = detector(RandomSampler(8))
    with rows_of_roi_network(model) as seen:
        model(*mini_batch())
    assert seen == [(16, True)]


# --------------------------------------------------------------------------------------------------- the read-only pass


def _distinct(rois: RoIs) -> int:
    """Returns the number of windows of the feature map that the RoIs round to, counted with whole numbers."""
    corners = (rois.boxes - torch.tensor([0, 0, 1, 1])).long()
    return len({(i, *cells) for i, cells in zip(rois.images.tolist(), ((corners + 4) // 8).tolist(), strict=True)})


def test_every_roi_has_the_loss_of_a_full_pass() -> None:
    images, proposals, truths = mini_batch()
    model = detector(OHEMSampler()).double()
    rois = match(proposals, truths)
    features = model.backbone(images)
    expected = torch.stack(roi_losses(*model.head(features, rois), rois)).sum(dim=0)
    with rows_of_roi_network(model) as seen:
        actual = model.read_only_losses(features, rois)
    torch.testing.assert_close(actual, expected.detach())
    assert actual.dtype == torch.float64
    assert seen == [(_distinct(rois), False)]
    assert _distinct(rois) < len(rois)
    assert len(actual.unique()) > 50


def test_rois_of_one_window_keep_losses_of_their_own() -> None:
    """Checks that their outputs are shared, and their labels and targets are not."""
    model = detector(OHEMSampler())
    boxes = torch.tensor([[8.0, 8.0, 41.0, 41.0], [9.0, 9.0, 42.0, 42.0], [8.0, 8.0, 41.0, 41.0]])
    rois = RoIs(
        boxes, torch.zeros(3).long(), torch.tensor([1, 2, 0]), torch.rand(3, 4), torch.tensor([1.0, 0.9, 0.0]), 1
    )
    features = model.backbone([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    with rows_of_roi_network(model) as seen:
        actual = model.read_only_losses(features, rois)
    assert seen == [(1, False)]
    assert len(actual.unique()) == 3
    expected = torch.stack(roi_losses(*model.head(features, rois), rois)).sum(dim=0)
    torch.testing.assert_close(actual, expected.detach())


def test_alike_windows_of_two_images_are_not_shared() -> None:
    model = detector(OHEMSampler())
    box = torch.tensor([[8.0, 8.0, 41.0, 41.0]])
    images = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (0, 255)]
    rois = match([box, box], [nothing(), nothing()])
    actual = model.read_only_losses(model.backbone(images), rois)
    assert actual[0] != actual[1]


@pytest.mark.parametrize("head", [plain_head, batch_norm_head])
def test_the_pass_leaves_no_trace(head: Any) -> None:
    images, proposals, truths = mini_batch()
    model = detector(OHEMSampler(), head=head())
    features = model.backbone(images)
    features.retain_grad()
    before = copy.deepcopy(model.state_dict())
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        losses = model.read_only_losses(features, match(proposals, truths))
    assert not losses.requires_grad
    assert not saved, "activations are kept for a backward pass"
    assert features.requires_grad
    assert features.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_statistics_move_once_a_step() -> None:
    """Checks that the chosen RoIs alone change them, as in a network that gets only those."""
    batch, recorder = mini_batch(), Recorder(OHEMSampler(8))
    model = detector(recorder, head=batch_norm_head())
    model(*batch)
    twin = detector(lambda rois, losses: recorder.chosen, head=batch_norm_head())  # type: ignore[arg-type, return-value]
    twin(*batch)
    state, expected = model.backbone.roi_head.state_dict(), twin.backbone.roi_head.state_dict()
    assert state["1.num_batches_tracked"] == 1
    assert_close(state, expected)


def test_dropout_is_on_while_mining() -> None:
    images, proposals, truths = mini_batch()
    model = detector(OHEMSampler(), head=nn.Sequential(*plain_head(), nn.Dropout(0.5)))
    features, rois = model.backbone(images), match(proposals, truths)
    assert not torch.equal(model.read_only_losses(features, rois), model.read_only_losses(features, rois))
    model.eval()
    assert torch.equal(model.read_only_losses(features, rois), model.read_only_losses(features, rois))


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, proposals, truths = mini_batch()
    model = detector(OHEMSampler()).double()
    features, rois = model.backbone(images), match(proposals, truths)
    whole = model.read_only_losses(features, rois)
    monkeypatch.setattr(roi_networks, "CHUNK", chunk)
    with rows_of_roi_network(model) as seen:
        torch.testing.assert_close(model.read_only_losses(features, rois), whole)
    assert max(seen) == (chunk, False)
    assert sum(n for n, _ in seen) == _distinct(rois)
    assert len(seen) == -(-_distinct(rois) // chunk)


@pytest.mark.parametrize("rows", [1, 9])
def test_outputs_in_parts_are_the_outputs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks also that features are freed when the output layers have read them."""
    images, proposals, truths = mini_batch()
    model = detector(OHEMSampler()).double()
    features, rois = model.feature_map(images), match(proposals, truths)
    whole = model.read_only_losses(features, rois)
    most = []
    model.scores.register_forward_pre_hook(lambda _, inputs: most.append(len(inputs[0])))
    monkeypatch.setattr(roi_networks, "CHUNK", 5)
    monkeypatch.setattr(fast_rcnn, "AT_ONCE", rows)
    torch.testing.assert_close(model.read_only_losses(features, rois), whole)
    assert max(most) == (5 if rows == 1 else 10)
    assert sum(most) == _distinct(rois)


cells = st.integers(-FARTHEST, FARTHEST - 1)
near_cells = st.integers(-1, 1)


@given(st.lists(st.tuples(st.integers(0, 2**11 - 1), *[cells | near_cells] * 4)))
def test_distinct_windows_are_those_that_torch_finds(rows: list[tuple[int, ...]]) -> None:
    windows = torch.tensor(rows).reshape(-1, 5).float()
    expected = torch.unique(windows, dim=0, return_inverse=True)
    for ours, theirs in zip(distinct(windows), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_windows_far_from_the_image_are_cut() -> None:
    """So that a window fits a whole number; the cells of the map lie in the same of their bins as before."""
    far = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [1e8, 0, 2e8, 8], [0, 0, 1e9, 1e9]])
    model = detector(OHEMSampler())
    windows = model.windows(match([far], [nothing()]))
    assert windows[:, 1:].abs().max() <= FARTHEST
    features = torch.rand(1, 4, 8, 8)
    uncut = torch.tensor([[0, -1e8, -1e8, 1e8, 1e8], [0, 1e7, 0, 2e7, 1], [0, 0, 0, 1e8, 1e8]])
    assert torch.equal(roi_pool(features, windows, 7), roi_pool(features, uncut, 7))


def _autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_mining_takes_no_gradient_away(mixed: bool) -> None:
    """Checks autocast, whose cache of weights cast in a first pass without gradient would stop the training."""
    batch, gradients = mini_batch(), []
    for sampler in (AllSampler(), OHEMSampler(8)):
        torch.manual_seed(0)
        model = FastRCNN(tiny(32), CLASSES + 1, sampler)
        with _autocast(mixed):
            gradients.append(losses_and_gradients(model, batch)[1])
    expected, actual = gradients
    assert actual.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in actual.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def test_ranking_is_in_float32_under_autocast() -> None:
    batch, recorder, exact = mini_batch(), Recorder(OHEMSampler(8)), Recorder(OHEMSampler(8))
    with _autocast(True):
        losses = detector(recorder)(*batch)
    detector(exact)(*batch)
    assert recorder.losses is not None
    assert recorder.losses.dtype == torch.float32
    assert exact.losses is not None
    torch.testing.assert_close(recorder.losses, exact.losses, rtol=0.1, atol=0.2)
    # Rounded to bfloat16 they would tie.
    assert len(recorder.losses.unique()) > len(recorder.losses.bfloat16().unique())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())


# ------------------------------------------------------------------------------------------------------------- pooling

eighths = st.integers(0, 8 * 120).map(lambda n: n / 8)  # half cells among them
spans = st.integers(1, 8 * 90).map(lambda n: n / 8)


@given(st.lists(st.tuples(eighths, eighths, spans, spans), min_size=1, max_size=20))
def test_windows_are_those_of_roi_pool(rows: list[tuple[float, float, float, float]]) -> None:
    """Checks that rounding the windows first gives exactly the values of RoIPool on the boxes."""
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows])
    model = detector(AllSampler(), head=nn.Sequential(nn.Flatten(), nn.Linear(4 * POOL * POOL, 8)))
    rng = torch.Generator().manual_seed(0)
    features = torch.rand(2, 4, 12, 16, generator=rng)
    images = torch.arange(len(boxes)) % 2
    rois = RoIs(boxes, images, torch.zeros(len(boxes)).long(), torch.zeros(len(boxes), 4), torch.zeros(len(boxes)), 2)
    pooled: list[Tensor] = []
    hook = model.backbone.roi_head.register_forward_hook(lambda _, inputs, output: pooled.append(inputs[0]))
    model.head(features, rois)
    hook.remove()
    inclusive = torch.cat([images[:, None].float(), boxes - torch.tensor([0, 0, 1, 1])], dim=1)
    assert torch.equal(pooled[0], roi_pool(features, inclusive, (POOL, POOL), spatial_scale=1 / STRIDE))
