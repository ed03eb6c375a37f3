"""The network that learns foreground from boxes: its labels, its loss, and the features that a detector pools."""

import math

import pytest
import torch
from torch import Tensor

from ohem.detection.foreground import ForegroundNetwork
from ohem.detection.regions import FOREGROUND, Regions
from ohem.rois import match
from ohem.samplers import OHEMSampler
from tests.detection.toy_detector import (
    CLASSES,
    Implementation,
    detector,
    losses_and_gradients,
    mini_batch,
    nothing,
    plain_head,
    toy,
)

REGIONS = Regions(foreground=FOREGROUND)
SIZES = [(32, 24)]


def network(weight: float, bias: float) -> ForegroundNetwork:
    """Returns a network of two classes whose scores are `weight` times the sum of the channels, plus `bias`."""
    made = ForegroundNetwork(toy(plain_head()), 2)
    torch.nn.init.constant_(made.scores.weight, weight)
    torch.nn.init.constant_(made.scores.bias, bias)
    return made


def truth(ignore: bool = False) -> dict[str, Tensor]:
    """Returns an object of class 2 on cells 1 and 2 of row 0, and perhaps an ignored region on row 3."""
    boxes = torch.tensor([[8.0, 0.0, 24.0, 8.0], [0.0, 24.0, 24.0, 32.0]])
    target = {"boxes": boxes, "labels": torch.tensor([2, 1]), "ignore": torch.tensor([False, True])}
    return target if ignore else {name: value[:1] for name, value in target.items()}


def test_loss_of_a_network_without_knowledge_is_log_2() -> None:
    loss = network(0.0, 0.0).loss(torch.rand(1, 4, 4, 4), [truth()], SIZES, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("ignore", "cells"), [(False, 12), (True, 9)])
def test_cells_in_the_box_of_an_object_are_foreground_of_its_class(ignore: bool, cells: int) -> None:
    """Of 4 x 4 cells, the image has 4 x 3. With a score of 1 everywhere, a foreground cell costs 1 less."""
    loss = network(0.0, 1.0).loss(torch.rand(1, 4, 4, 4), [truth(ignore)], SIZES, torch.tensor([0]))
    background = math.log(1 + math.e)
    assert loss.item() == pytest.approx(background - 2 / (2 * cells), rel=1e-6)


def test_an_object_counts_on_its_own_cells() -> None:
    """The hidden layer is 1 on one cell, whose score is 3: it is right where the object is, and wrong next to it."""
    losses = []
    for column in (1, 0):
        hidden = torch.zeros(1, 4, 4, 4)
        hidden[0, 0, 0, column] = 1
        losses.append(network(3.0, 0.0).loss(hidden, [truth()], SIZES, torch.tensor([0])).item() * 24)
    on_object, outside = math.log(1 + math.exp(-3)), math.log(1 + math.exp(3))
    assert losses[0] == pytest.approx(22 * math.log(2) + outside + on_object, rel=1e-5)  # class 1 is wrong there
    assert losses[1] == pytest.approx(22 * math.log(2) + 2 * outside, rel=1e-5)


def test_images_have_the_weight_of_their_rois() -> None:
    """So that the losses of two processes, weighted by their RoIs, are the loss of one."""
    made, hidden, targets = network(1.0, 0.5), torch.rand(2, 4, 4, 4), [truth(), truth(ignore=True)]
    whole = made.loss(hidden, targets, SIZES * 2, torch.tensor([0, 1, 1, 1]))
    parts = [made.loss(hidden[[i]], [targets[i]], SIZES, torch.tensor([0])) for i in (0, 1)]
    torch.testing.assert_close(whole, (parts[0] + 3 * parts[1]) / 4)
    assert made.loss(hidden, targets, SIZES * 2, torch.zeros(0).long()) == 0


@pytest.mark.parametrize("implementation", ["read_only", "loss_layer"])
def test_its_training_is_separate(implementation: Implementation) -> None:
    batch, model = mini_batch(), detector(OHEMSampler(8), implementation, regions=REGIONS)
    losses = model(*batch)
    assert isinstance(losses, dict)
    assert list(losses) == ["loss_classifier", "loss_box_reg", "loss_foreground"]
    for name, loss in losses.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        own = {key for key in reached if key.startswith("foreground.")}
        assert own == (reached if name == "loss_foreground" else set()), name


def test_every_parameter_is_trained() -> None:
    model = detector(OHEMSampler(8), regions=REGIONS)
    _, gradients = losses_and_gradients(model, mini_batch())
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.any() for gradient in gradients.values())


def test_foreground_features_are_pooled_for_the_classification() -> None:
    """8 features of each of ten regions and 4 of the foreground; 8 for the box regression."""
    model = detector(OHEMSampler(8), regions=REGIONS).eval()
    images, proposals, _ = mini_batch()
    features = model.feature_map(images)
    assert features.shape[1] == 8
    rois = match(proposals, [nothing()] * 2)
    scores, deltas = model.head(features, rois)
    assert (model.scores.in_features, model.deltas.in_features) == (84, 8)
    changed = torch.cat([features[:, :4], features[:, 4:] + 1], dim=1)
    others, same = model.head(changed, rois)
    assert not torch.equal(others, scores)
    assert torch.equal(same, deltas)
    assert scores.shape == (120, CLASSES + 1)


def test_the_copies_get_the_weights_of_the_roi_head_and_the_foreground_keeps_its_own() -> None:
    model = detector(OHEMSampler(8), regions=REGIONS)
    torch.nn.init.ones_(model.backbone.roi_head[1].weight)  # type: ignore[index]
    model.copy_roi_head()
    ones = [bool((network[1].weight == 1).all()) for network in model.stacks]  # type: ignore[index]
    assert ones == [True] * 9 + [False, True]
