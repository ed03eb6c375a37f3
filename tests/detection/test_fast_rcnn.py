"""The detector: its two implementations of OHEM, what its read-only pass leaves behind, and unusual mini-batches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_pool

from ohem.detection import fast_rcnn
from ohem.detection.backbones import Backbone, Normalisation, tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.post_process import PostProcess
from ohem.losses import roi_losses
from ohem.recorder import Recorder
from ohem.rois import RoIs, match
from ohem.samplers import AllSampler, OHEMSampler, RandomSampler, RoISampler
from tests.helpers.make_rois import near, random_target

CLASSES = 3  # and background
STRIDE, POOL = 8, 2
Batch = tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]
Implementation = Literal["read_only", "loss_layer"]


def plain_head() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * POOL * POOL, 8), nn.ReLU())


def batch_norm_head() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), *plain_head())


def toy(head: nn.Module) -> Backbone:
    """Each cell sees the 8 x 8 pixels below it and no more, so that padding an image changes none of its cells."""
    return Backbone(
        nn.Sequential(nn.Conv2d(3, 4, STRIDE, stride=STRIDE), nn.ReLU()),
        head,
        stride=STRIDE,
        channels=4,
        pool_size=POOL,
        dim=8,
        normalisation=Normalisation("rgb", (128.0,) * 3, (64.0,) * 3),
    )


def detector(
    sampler: RoISampler, implementation: Implementation = "read_only", head: nn.Module | None = None, **options: Any
) -> FastRCNN:
    """In train mode, of the same weights at each call; they are large enough for losses that differ."""
    torch.manual_seed(0)
    model = FastRCNN(toy(head or plain_head()), CLASSES + 1, sampler, implementation=implementation, **options)
    for layer in (model.scores, model.deltas):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return model.train()


def mini_batch(ignored: int = 1, proposals: int = 60) -> Batch:
    """Two images of unlike size, with an ignored region each."""
    rng = torch.Generator().manual_seed(3)
    sizes = ((96, 128), (80, 104))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=rng) for size in sizes]
    truths = [random_target(rng, CLASSES, ignored=ignored) for _ in images]
    return images, [near(truth, proposals, rng, *size) for truth, size in zip(truths, sizes, strict=True)], truths


def per_class() -> tuple[Tensor, Tensor]:
    """A normalisation of the regression targets, mean and std (K + 1, 4)."""
    rng = torch.Generator().manual_seed(5)
    return torch.rand(CLASSES + 1, 4, generator=rng), 0.1 + torch.rand(CLASSES + 1, 4, generator=rng)


def nothing() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def losses_and_gradients(model: FastRCNN, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.zero_grad()
    losses = model(*batch)
    assert isinstance(losses, dict)
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@contextmanager
def rows_of_roi_network(model: FastRCNN) -> Iterator[list[tuple[int, bool]]]:
    """How many rows each call of the RoI network got, and whether it recorded a gradient."""
    seen: list[tuple[int, bool]] = []
    hook = model.backbone.roi_head.register_forward_hook(
        lambda _, inputs, output: seen.append((len(inputs[0]), output.requires_grad))
    )
    yield seen
    hook.remove()


MINERS = [
    OHEMSampler(8),
    OHEMSampler(8, per_image=False),
    OHEMSampler(16, suppress="label"),
    OHEMSampler(8, nms_iou=None),
    OHEMSampler(1000, nms_iou=0.3),
]

# -------------------------------------------------------------------------------------- two implementations, one loss


@pytest.mark.parametrize("sampler", MINERS, ids=str)
def test_both_implementations_give_the_same_gradients(sampler: OHEMSampler) -> None:
    """In float64, where the two do not round to different sides of a tie."""
    batch = mini_batch()
    recorders = Recorder(sampler), Recorder(sampler)
    (losses, gradients), (masked_losses, masked_gradients) = (
        losses_and_gradients(detector(recorder, implementation).double(), batch)
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
@pytest.mark.parametrize("sampler", [*MINERS, AllSampler(), RandomSampler(8)], ids=str)
def test_the_gradient_is_of_the_mean_over_the_chosen(sampler: RoISampler, implementation: Implementation) -> None:
    """Against one pass over all RoIs, with the mean of their losses written out."""
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
    """Normalised per class, and the ignored RoIs left out."""
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
    """Windows of the feature map that the RoIs round to, counted with whole numbers."""
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
    assert actual.dtype == torch.float32
    assert seen == [(_distinct(rois), False)]
    assert _distinct(rois) < len(rois)
    assert len(actual.unique()) > 50


def test_rois_of_one_window_keep_losses_of_their_own() -> None:
    """Their outputs are shared; their labels and targets are not."""
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
    """By the chosen RoIs alone: as in a network that is given only them."""
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
    monkeypatch.setattr(fast_rcnn, "CHUNK", chunk)
    with rows_of_roi_network(model) as seen:
        torch.testing.assert_close(model.read_only_losses(features, rois), whole)
    assert max(seen) == (chunk, False)
    assert sum(n for n, _ in seen) == _distinct(rois)
    assert len(seen) == -(-_distinct(rois) // chunk)


def _autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_mining_takes_no_gradient_away(mixed: bool) -> None:
    """Autocast caches casts of the weights: those of a first pass without gradient would have none in the second."""
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
    """Rounding the windows beforehand gives the very values of RoIPool on the boxes, up to their last pixel."""
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


# ------------------------------------------------------------------------------------------------- unusual mini-batches

SAMPLERS = [AllSampler(), RandomSampler(8), OHEMSampler(8), OHEMSampler(8, per_image=False, suppress="label")]


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_an_image_without_an_object_is_trained_on(sampler: RoISampler, implementation: Implementation) -> None:
    images, proposals, _ = mini_batch()
    recorder = Recorder(sampler)
    losses, gradients = losses_and_gradients(
        detector(recorder, implementation), (images[:1], proposals[:1], [nothing()])
    )
    assert losses["loss_classifier"] > 0
    assert losses["loss_box_reg"] == 0
    assert recorder.statistics()["chosen"] >= 8
    assert recorder.statistics()["foreground"] == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not gradients["deltas.weight"].any()
    assert gradients["scores.weight"].any()
    assert gradients["backbone.features.0.weight"].any()


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_an_image_without_anything(sampler: RoISampler, implementation: Implementation) -> None:
    """It has no loss, and does not change the other image or the step."""
    images, proposals, truths = mini_batch()
    empty = torch.zeros(0, 4)
    recorder = Recorder(sampler)
    model = detector(recorder, implementation)
    losses, _ = losses_and_gradients(model, (images, [empty, proposals[1]], [nothing(), truths[1]]))
    assert all(value > 0 for value in losses.values())
    assert recorder.rois is not None
    assert set(recorder.rois.images.tolist()) == {1}

    losses, gradients = losses_and_gradients(model, (images, [empty, empty], [nothing(), nothing()]))
    assert [value.item() for value in losses.values()] == [0, 0]
    assert all(value.requires_grad for value in losses.values())
    assert not any(gradient.any() for gradient in gradients.values())
    assert gradients.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_an_object_without_proposals(sampler: RoISampler) -> None:
    """The ground truth is a RoI itself."""
    images, _, truths = mini_batch()
    losses, _ = losses_and_gradients(detector(sampler), (images[:1], [torch.zeros(0, 4)], truths[:1]))
    assert all(value > 0 for value in losses.values())


def test_only_ignored_rois_give_no_loss() -> None:
    images, _, truths = mini_batch()
    region = {**truths[0], "ignore": torch.ones(3, dtype=torch.bool)}
    losses, gradients = losses_and_gradients(detector(OHEMSampler()), (images[:1], [truths[0]["boxes"]], [region]))
    assert [value.item() for value in losses.values()] == [0, 0]
    assert not any(gradient.any() for gradient in gradients.values())


def test_train_mode_needs_targets() -> None:
    images, proposals, _ = mini_batch()
    with pytest.raises(ValueError, match="needs targets"):
        detector(AllSampler())(images, proposals)


# --------------------------------------------------------------------------------------------------- images in company


def test_a_mini_batch_is_the_mean_of_its_images() -> None:
    """As the paper accumulates N passes of one image: equal where each gives as many RoIs."""
    images, proposals, truths = mini_batch()
    recorder = Recorder(OHEMSampler(4))
    model = detector(recorder).double()
    together_losses, together = losses_and_gradients(model, (images, proposals, truths))
    alone = []
    for i in range(2):
        alone.append(losses_and_gradients(model, (images[i : i + 1], proposals[i : i + 1], truths[i : i + 1])))
        assert recorder.chosen is not None
        assert len(recorder.chosen) == 4
    for actual, parts in ((together_losses, [a[0] for a in alone]), (together, [a[1] for a in alone])):
        assert_close(actual, {name: (parts[0][name] + parts[1][name]) / 2 for name in actual})


@torch.no_grad()
def _detect(model: FastRCNN, images: list[Tensor], proposals: list[Tensor]) -> list[dict[str, Tensor]]:
    actual = model.eval()(images, proposals)
    assert isinstance(actual, list)
    return actual


@pytest.mark.parametrize("kind", ["toy", "tiny"])
def test_outputs_do_not_depend_on_other_images(kind: str) -> None:
    """Of unlike sizes where cells see no padding; of one size with a real backbone.

    RoIPool rounds a box at the border of the smaller image to a cell of padding, which alone would not be there.
    """
    images, proposals, _ = mini_batch()
    proposals[1] = proposals[1].minimum(torch.tensor([104.0, 80.0] * 2) - STRIDE)
    model = detector(AllSampler())
    if kind == "tiny":
        model = FastRCNN(tiny(16), CLASSES + 1, AllSampler())
        images[0], proposals[0] = images[0][:, :80, :104], proposals[1].flip(0)

    def as_they_are(scores: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        return {"scores": scores, "deltas": deltas, "boxes": boxes, "size": torch.tensor(size)}

    model.post_process = as_they_are  # type: ignore[assignment]
    together = _detect(model, images, proposals)
    for i, actual in enumerate(together):
        alone = _detect(model, images[i : i + 1], proposals[i : i + 1])[0]
        assert actual["size"].tolist() == list(images[i].shape[1:])
        assert torch.equal(actual["boxes"], proposals[i])
        torch.testing.assert_close(actual, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0]["scores"], together[1]["scores"], atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- detections


def test_detections() -> None:
    """Of each image a dictionary, highest score first, boxes inside the image."""
    images, proposals, _ = mini_batch()
    actual = _detect(detector(AllSampler()), images, proposals)
    assert len(actual) == 2
    for image, result in zip(images, actual, strict=True):
        assert set(result) == {"boxes", "labels", "scores"}
        n = len(result["scores"])
        assert n > 5
        assert result["boxes"].shape == (n, 4)
        assert (result["boxes"].dtype, result["scores"].dtype, result["labels"].dtype) == (
            torch.float32,
            torch.float32,
            torch.int64,
        )
        assert (result["scores"].diff() <= 0).all()
        assert ((result["labels"] >= 1) & (result["labels"] <= CLASSES)).all()
        height, width = image.shape[1:]
        limits = torch.tensor([width, height, width, height])
        assert ((result["boxes"] >= 0) & (result["boxes"] <= limits)).all()


def test_detections_are_those_of_the_outputs() -> None:
    """Probabilities by softmax, regressions back from their normalisation."""
    images, proposals, _ = mini_batch()
    mean, std = per_class()
    post = PostProcess(score=0.2, max_detections=10)
    model = detector(AllSampler(), box_mean=mean, box_std=std, post_process=post)
    actual = _detect(model, images, proposals)
    features = model.backbone(images)
    for i, result in enumerate(actual):
        rois = match([proposals[i]], [nothing()])
        scores, deltas = model.head(features[i : i + 1], rois)
        height, width = images[i].shape[1:]
        expected = post(scores.softmax(dim=1), deltas * std + mean, proposals[i], (height, width))
        assert result["labels"].tolist() == expected["labels"].tolist()
        torch.testing.assert_close(result["scores"], expected["scores"])
        torch.testing.assert_close(result["boxes"], expected["boxes"])


def test_a_trained_regression_lands_on_the_object() -> None:
    """Detection inverts the regression targets of `match`, for any normalisation."""
    mean, std = per_class()
    model = detector(AllSampler(), box_mean=mean, box_std=std)
    box, truth = torch.tensor([[20.0, 20.0, 60.0, 60.0]]), torch.tensor([[24.0, 18.0, 66.0, 58.0]])
    target = {"boxes": truth, "labels": torch.tensor([2])}
    wanted = match([box], [target], mean=mean, std=std, add_ground_truth=False)
    assert wanted.labels.tolist() == [2]
    with torch.no_grad():
        for layer in (model.scores, model.deltas):
            layer.weight.zero_()
        model.deltas.bias.view(CLASSES + 1, 4)[2] = wanted.targets[0]
        model.scores.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
    best = _detect(model, [torch.zeros(3, 96, 128, dtype=torch.uint8)], [box])[0]
    assert best["labels"][0] == 2
    torch.testing.assert_close(best["boxes"][0], truth[0], rtol=0, atol=1e-3)


def test_no_proposals_no_detections() -> None:
    images, proposals, _ = mini_batch()
    actual = _detect(detector(AllSampler()), images, [torch.zeros(0, 4), proposals[1]])
    assert actual[0]["boxes"].shape == (0, 4)
    assert len(actual[1]["boxes"]) > 0


def test_the_normalisation_travels_with_the_weights() -> None:
    mean, std = per_class()
    state = detector(AllSampler(), box_mean=mean, box_std=std).state_dict()
    model = detector(AllSampler())
    assert torch.equal(model.box_std, torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(CLASSES + 1, 4))
    model.load_state_dict(state)
    assert torch.equal(model.box_mean, mean)
    assert torch.equal(model.box_std, std)


def test_new_output_layers_are_as_in_the_release() -> None:
    torch.manual_seed(0)
    model = FastRCNN(tiny(512), 50, AllSampler())
    assert model.scores.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.deltas.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not model.scores.bias.any()
    assert not model.deltas.bias.any()


def test_the_input_is_only_read() -> None:
    batch = mini_batch()
    before = copy.deepcopy(batch)
    detector(OHEMSampler())(*batch)
    _detect(detector(OHEMSampler()), batch[0], batch[1])
    for given_now, given_before in zip((*batch[0], *batch[1]), (*before[0], *before[1]), strict=True):
        assert torch.equal(given_now, given_before)
    for truth, truth_before in zip(batch[2], before[2], strict=True):
        assert all(torch.equal(truth[name], truth_before[name]) for name in truth_before)
