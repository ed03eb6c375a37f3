"""The detector on unusual mini-batches, on several images at once, and its detections."""

import copy

import pytest
import torch
from torch import Tensor

from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.post_process import PostProcess
from ohem.recorder import Recorder
from ohem.rois import match
from ohem.samplers import AllSampler, OHEMSampler, RandomSampler, RoISampler
from tests.detection.toy_detector import (
    CLASSES,
    STRIDE,
    Implementation,
    assert_close,
    detector,
    losses_and_gradients,
    mini_batch,
    nothing,
    per_class,
)

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
    """Checks that it has no loss, and changes neither the other image nor the step."""
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
    """Checks that the ground truth is itself a RoI."""
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


# ------------------------------------------------------------------------------------------------------- several images


def test_a_mini_batch_is_the_mean_of_its_images() -> None:
    """Compares with N accumulated passes of one image, as in the paper: equal where each gives as many RoIs."""
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
    """Uses images of different sizes where cells see no padding, and of one size with a real backbone.

    RoIPool rounds a box at the border of the smaller image to a cell of padding, which the image alone does not have.
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
    """Checks a dictionary for each image: highest score first, boxes inside the image."""
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
    """Checks probabilities by softmax, and regressions without their normalisation."""
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
    """Checks that detection inverts the regression targets of `match`, for any normalisation."""
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
