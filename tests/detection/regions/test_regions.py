"""The regions of MR-CNN: their rectangles, their windows, and a detector that pools them."""

from typing import Any, get_args

import pytest
import torch
from torch import nn

from ohem.config.schema import RegionName
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.regions import FOREGROUND, REGIONS, Region, Regions
from ohem.detection.windows import combined, distinct, own_cells, windows_of
from ohem.draws import seeded_images
from ohem.losses import roi_losses
from ohem.recorder import Recorder
from ohem.rois import match
from ohem.samplers import OHEMSampler
from tests.detection.toy_detector import (
    CLASSES,
    POOL,
    assert_close,
    detector,
    losses_and_gradients,
    mini_batch,
    nothing,
    plain_head,
)

BOX = torch.tensor([[10.0, 20.0, 50.0, 100.0]])
BY_HAND = {
    "original": [10, 20, 50, 100],
    "left": [10, 20, 30, 100],
    "right": [30, 20, 50, 100],
    "upper": [10, 20, 50, 60],
    "lower": [10, 60, 50, 100],
    "center": [20, 40, 40, 80],
    "center_ring": [14, 28, 46, 92, 24, 48, 36, 72],
    "border": [10, 20, 50, 100, 20, 40, 40, 80],
    "wide_border": [0, 0, 60, 120, 14, 28, 46, 92],
    "context": [-6, -12, 66, 132, 10, 20, 50, 100],
}


@pytest.mark.parametrize("name", REGIONS)
def test_rectangles_of_a_box(name: str) -> None:
    torch.testing.assert_close(REGIONS[name].rectangles(BOX), torch.tensor([BY_HAND[name]]).float())


def test_boxes_are_regressed_from_an_enlarged_box() -> None:
    regressed = Regions().all[-1]
    torch.testing.assert_close(regressed.rectangles(BOX), torch.tensor([[4.0, 8.0, 56.0, 112.0]]))
    assert Regions(regressed=None).all == tuple(REGIONS.values())


def test_options_name_every_region() -> None:
    assert get_args(RegionName) == ("mr_cnn", *REGIONS)


@pytest.mark.parametrize(
    ("name", "value"), [("outer", 0.0), ("outer", -1.0), ("inner", 1.1), ("inner", -0.1), ("half", "middle")]
)
def test_impossible_regions_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Region(**{name: value})


def test_no_regions_are_refused() -> None:
    with pytest.raises(ValueError, match="classified"):
        Regions(())
    with pytest.raises(TypeError, match=r"classified\[1\]"):
        Regions((Region(), "left"))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- windows


def test_windows_of_a_ring_have_both_rectangles() -> None:
    rois = match([BOX], [nothing()])
    assert windows_of(rois, REGIONS["border"], 8).tolist() == [[0, 1, 3, 6, 12, 3, 5, 5, 10]]  # last pixels 49, 99
    assert windows_of(rois, REGIONS["context"], 8).tolist() == [[0, -1, -1, 8, 16, 1, 3, 6, 12]]


def test_rings_that_differ_in_one_rectangle_are_distinct() -> None:
    outer = [0.0, 0, 9, 9]
    rings = torch.tensor([[1, *outer, 2, 2, 4, 4], [0, *outer, 2, 2, 4, 4], [0, *outer, 2, 2, 4, 5]])
    rows, which = distinct(torch.cat([rings, rings[1:]]))
    assert which.tolist() == [2, 0, 1, 0, 1]
    assert rows.tolist() == rings[[1, 2, 0]].tolist()


def test_combinations_are_counted_once() -> None:
    index, which = combined([torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 0, 2])])
    assert index.tolist() == [[0, 1], [0, 2], [1, 0]]
    assert which.tolist() == [0, 2, 2, 1]
    assert combined([torch.zeros(0).long()] * 2)[0].shape == (0, 2)


def test_cells_in_the_padding_are_zero() -> None:
    """The first image has 17 rows of pixels and 16 columns: 3 rows and 2 columns of cells."""
    features = own_cells(torch.ones(2, 1, 4, 3), [(17, 16), (32, 24)], 8)
    assert features[0, 0].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert features[1].all()


# ----------------------------------------------------------------------------------------------------------- detector


def test_the_box_alone_is_the_plain_detector() -> None:
    """Compares one image, since a plain RoI at the border of an image rounds to a cell of the padding."""
    images, proposals, truths = mini_batch()
    batch, plain = (images[:1], proposals[:1], truths[:1]), detector(OHEMSampler(8))
    alone = detector(OHEMSampler(8), regions=Regions((Region(),), regressed=None))
    assert plain.state_dict().keys() == alone.state_dict().keys()
    for ours, theirs in zip(losses_and_gradients(alone, batch), losses_and_gradients(plain, batch), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def by_hand(model: FastRCNN, features: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Computes the scores of one box with the ten stacks, with the maxima of masked copies of the map."""
    hidden = []
    networks = [model.backbone.roi_head, *model.stacks]
    for network, region in zip(networks[:10], REGIONS.values(), strict=True):
        window = [int(n) for n in model.windows(match([box], [nothing()]), region)[0, 1:]]
        (x1, y1, x2, y2), inner, masked = window[:4], window[4:], features.clone()
        if inner:
            masked[:, :, max(inner[1] + 1, 0) : max(inner[3], 0), max(inner[0] + 1, 0) : max(inner[2], 0)] = 0
        wide = nn.functional.pad(masked, (8, 8, 8, 8))[:, :, y1 + 8 : y2 + 9, x1 + 8 : x2 + 9]
        hidden.append(network(nn.functional.adaptive_max_pool2d(wide, POOL)))
    return model.scores(torch.cat(hidden, dim=1))


def test_scores_are_those_of_ten_stacks() -> None:
    model = detector(OHEMSampler(8), regions=Regions())
    for network in model.stacks:
        nn.init.normal_(network[1].weight)  # type: ignore[index]
    features = torch.rand(1, 4, 12, 16)
    for box in ([[16.0, 16.0, 80.0, 64.0]], [[0.0, 0.0, 128.0, 96.0]], [[30.0, 20.0, 50.0, 90.0]]):
        boxes = torch.tensor(box)
        scores, deltas = model.head(features, match([boxes], [nothing()]))
        torch.testing.assert_close(scores, by_hand(model, features, boxes))
        assert deltas.shape == (1, CLASSES + 1, 4)


def test_boxes_are_regressed_by_a_network_of_their_own() -> None:
    model = detector(OHEMSampler(8), regions=Regions())
    assert (model.scores.in_features, model.deltas.in_features) == (80, 8)
    scores, deltas = model.head(torch.rand(1, 4, 12, 16), match([BOX], [nothing()]))
    own = list(model.stacks[-1].parameters())
    assert not any(g.any() for g in torch.autograd.grad(scores.sum(), own, retain_graph=True))
    assert all(g.any() for g in torch.autograd.grad(deltas.sum(), own))
    joint = detector(OHEMSampler(8), regions=Regions(regressed=None))
    assert (joint.scores.in_features, joint.deltas.in_features) == (80, 80)


@pytest.mark.parametrize("regions", [Regions(), Regions(regressed=None, foreground=FOREGROUND)], ids=["own", "joint"])
def test_the_read_only_pass_has_the_losses_of_the_training_pass(regions: Regions) -> None:
    images, proposals, truths = mini_batch()
    model = detector(OHEMSampler(8), regions=regions).double()
    features, rois = model.feature_map(images), match([p[:20].repeat(2, 1) for p in proposals], truths)
    expected = torch.stack(roi_losses(*model.head(features, rois), rois)).sum(dim=0)
    torch.testing.assert_close(model.read_only_losses(features, rois), expected.detach())
    hidden, which = model.distinct_features(features, rois)
    assert len(hidden) < len(rois)
    assert len(hidden) == len(which.unique())


def test_rois_are_shared_only_if_all_their_regions_are_alike() -> None:
    """Right sides of 38 and 44 pixels round to cell 5; those of the context, 50 and 58.4, to cells 6 and 7."""
    model = detector(OHEMSampler(8), regions=Regions((REGIONS["original"], REGIONS["context"]), regressed=None))
    rois = match([torch.tensor([[8.0, 8.0, 38.0, 38.0], [8.0, 8.0, 44.0, 38.0], [8.0, 8.0, 38.0, 38.0]])], [nothing()])
    assert len(torch.unique(model.windows(rois), dim=0)) == 1
    first, second, third = model.distinct_features(torch.rand(1, 4, 8, 8), rois)[1].tolist()
    assert first == third != second


def test_detections_do_not_depend_on_the_other_images_of_a_batch() -> None:
    """The second image is padded to the size of the first, and its regions reach into the padding."""
    images, proposals, _ = mini_batch()
    model = detector(OHEMSampler(8), regions=Regions()).eval()
    batch, (alone,) = model(images, proposals), model(images[1:], proposals[1:])
    assert len(alone["boxes"]) > 0
    assert_close(batch[1], alone)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_every_stack_is_trained(mixed: bool) -> None:
    model = detector(Recorder(OHEMSampler(8)), regions=Regions())
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        _, gradients = losses_and_gradients(model, mini_batch())
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.any() and gradient.isfinite().all() for gradient in gradients.values())


def test_dropout_of_an_image_is_the_same_in_every_batch() -> None:
    """Checks both passes, whose random numbers are functions of the step and the image alone."""
    images, proposals, truths = mini_batch()
    head = nn.Sequential(*plain_head(), nn.Dropout(0.5))
    model = detector(OHEMSampler(8), head=head, regions=Regions()).double()
    losses = []
    for first in (0, 1):
        rois = match(proposals[first:], truths[first:])
        features = model.feature_map(images[first:])
        with seeded_images([30, 40][first:]):
            trained = torch.stack(roi_losses(*model.head(features, rois), rois)).sum(dim=0)
            losses.append((model.read_only_losses(features, rois), trained))
    for whole, alone in zip(*losses, strict=True):
        torch.testing.assert_close(whole[-len(alone) :], alone)
