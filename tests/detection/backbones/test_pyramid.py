"""Pyramid pooling and fixed convolutions, the two parts of SPPnet that a RoI network and an option have."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

from ohem.config.recipes import RECIPES
from ohem.config.schema import ModelConfig
from ohem.detection.backbones import BACKBONES, Backbone, init_head, resnet50, vgg16, vgg_cnn_m_1024, with_pyramid
from ohem.detection.backbones.pyramid import LEVELS, SpatialPyramid
from ohem.detection.fast_rcnn import FastRCNN
from ohem.inputs.datasets import with_classes
from ohem.kernels.roi_pool import roi_max_pool
from ohem.models.build import build_model
from ohem.rois import match
from ohem.samplers import OHEMSampler
from tests.detection.toy_detector import (
    CLASSES,
    MINERS,
    Implementation,
    assert_close,
    losses_and_gradients,
    mini_batch,
    plain_head,
    rows_of_roi_network,
    toy,
)
from tests.helpers.contracts import check_backbone


def test_four_levels_by_hand() -> None:
    """The map has the numbers 0 to 35, row by row, so that the maximum of a bin is its lower right cell."""
    features = torch.arange(36.0).view(1, 1, 6, 6)
    pooled = roi_max_pool(features, torch.tensor([[0, 0, 0, 5, 5]]), 6)
    (row,) = SpatialPyramid()(pooled).tolist()
    assert len(row) == 50
    assert row[:36] == list(range(36))
    assert row[36:45] == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    assert row[45:49] == [14, 17, 32, 35]
    assert row[49:] == [35]


def test_levels_are_in_order_and_channels_within_them() -> None:
    features = torch.arange(72.0).view(1, 2, 6, 6)
    (row,) = SpatialPyramid()(features).tolist()
    assert row[:72] == list(range(72))
    assert row[72:74] == [7, 9]
    assert row[90:98] == [14, 17, 32, 35, 50, 53, 68, 71]
    assert row[98:] == [35, 71]


def test_every_level_is_roi_pool_of_its_size() -> None:
    """Windows of all sizes, also smaller than the bins: each level has the cells that RoIPool rounds to."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 30, 40, generator=rng)
    corners = torch.rand(300, 2, 2, generator=rng).sort(dim=1).values.flatten(1) * torch.tensor([39, 29, 39, 29])
    windows = torch.cat([torch.randint(0, 2, (300, 1), generator=rng).float(), corners.round()], dim=1)
    expected = [roi_pool(features, windows, (bins, bins)).flatten(1) for bins in LEVELS]
    assert torch.equal(SpatialPyramid()(roi_max_pool(features, windows, 6)), torch.cat(expected, dim=1))


def test_borders_of_bins_are_rounded_alike_at_every_width() -> None:
    """A map of one row of ascending numbers: the maximum of a bin is the place of its last cell."""
    features = torch.arange(1000.0).view(1, 1, 1, 1000)
    windows = torch.zeros(1000, 5)
    windows[:, 3] = torch.arange(1000)
    expected = [roi_pool(features, windows, (bins, bins)).flatten(1) for bins in LEVELS]
    assert torch.equal(SpatialPyramid()(roi_max_pool(features, windows, 6)), torch.cat(expected, dim=1))


def pyramid_detector(sampler: OHEMSampler, implementation: Implementation = "read_only", **options: int) -> FastRCNN:
    torch.manual_seed(0)
    model = FastRCNN(with_pyramid(toy(plain_head())), CLASSES + 1, sampler, implementation=implementation, **options)
    for layer in (model.scores, model.deltas):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return model.train()


@pytest.mark.parametrize("sampler", MINERS[:3], ids=repr)
def test_two_passes_have_the_gradients_of_one_masked_pass(sampler: OHEMSampler) -> None:
    batch = mini_batch()
    losses, gradients = losses_and_gradients(pyramid_detector(sampler), batch)
    masked_losses, masked = losses_and_gradients(pyramid_detector(sampler, "loss_layer"), batch)
    assert_close(losses, masked_losses)
    assert_close(gradients, masked)
    assert gradients["backbone.roi_head.1.weight"].shape == (8, 50 * 4)


@pytest.mark.parametrize("options", [{"rescore_top": 20}, {"shortlist": 30}], ids=str)
def test_the_options_of_the_ranking_choose_from_pyramids(options: dict[str, int]) -> None:
    images, proposals, targets = mini_batch()
    model = pyramid_detector(OHEMSampler(8), **options)
    targets = [{**target, "image_id": torch.tensor(i)} for i, target in enumerate(targets)]
    with rows_of_roi_network(model) as rows:
        for _ in range(2):
            model(images, proposals, targets)
    assert [count for count, with_gradient in rows if with_gradient] == [16, 16]


def test_one_image_in_two_sizes_has_detections_of_both() -> None:
    images, proposals, _ = mini_batch()
    model = pyramid_detector(OHEMSampler(8)).eval()
    twice = [images[0], images[0].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)]
    with torch.no_grad():
        detections = model.detect(twice, [1.0, 2.0], proposals[0], (96, 128))
    assert len(detections["boxes"]) > 0


def test_only_networks_that_begin_with_a_linear_layer_have_a_pyramid() -> None:
    with torch.device("meta"):
        backbone = resnet50()
    with pytest.raises(ValueError, match=r"nn\.Flatten and nn\.Linear"):
        with_pyramid(backbone)


def test_a_backbone_with_a_pyramid_is_a_backbone() -> None:
    check_backbone(with_pyramid(BACKBONES["tiny"]()))


@pytest.mark.parametrize("make", [vgg16, vgg_cnn_m_1024])
def test_published_weights_fill_all_but_the_first_linear_layer(make: type[Backbone]) -> None:
    with torch.device("meta"):
        whole, backbone = make(), with_pyramid(make())
    assert backbone.roi_head[1].in_features == 512 * 50  # type: ignore[index]
    names = [name for name in backbone.state_dict() if name.startswith(("features", "roi_head"))]
    assert [name for name in names if not backbone.pretrained.covers(name)] == ["roi_head.1.weight", "roi_head.1.bias"]
    assert all(map(whole.pretrained.covers, names))
    assert whole.pretrained.caffe[-2:] == ("fc6", "fc7")
    assert backbone.pretrained.caffe == tuple(layer for layer in whole.pretrained.caffe if layer != "fc6")


def test_a_new_head_gets_inputs_of_its_scale() -> None:
    """The scale is measured on pyramids: the outputs of the first layer have a standard deviation of 1."""
    torch.manual_seed(0)
    backbone = with_pyramid(BACKBONES["tiny"]())
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    init_head(backbone, [image])
    assert init_head(backbone, [image]) == pytest.approx(1, abs=1e-4)


# Fixed layers


def step(frozen: str) -> tuple[dict[str, Tensor], FastRCNN]:
    """Returns the weights before a step of SGD with weight decay, and the detector after it, with its gradients."""
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a", "b", "c"))
    options = replace(recipe, model=ModelConfig(backbone="tiny", dropout=0.0, frozen=frozen, pooling="pyramid"))  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = build_model(options, OHEMSampler(8)).train()
    assert isinstance(model, FastRCNN)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    losses_and_gradients(model, mini_batch())
    torch.optim.SGD(trained, lr=0.1, weight_decay=0.1).step()
    return before, model


@pytest.mark.parametrize(
    ("frozen", "fixed"),
    [("first", ()), ("convolutional", ("backbone.features",)), ("all", ("backbone.features", "backbone.roi_head"))],
)
def test_fixed_layers_get_no_gradient_and_keep_their_weights(frozen: str, fixed: tuple[str, ...]) -> None:
    before, model = step(frozen)
    for name, parameter in model.named_parameters():
        is_fixed = name.startswith(fixed) if fixed else False
        assert (parameter.grad is None) == is_fixed, name
        assert torch.equal(parameter, before[name]) == is_fixed, name


def test_fixed_convolutions_do_not_change_what_is_pooled() -> None:
    """A RoI is pooled by another code where no gradient is needed: the outputs are the same bit for bit."""
    images, proposals, targets = mini_batch()
    model = pyramid_detector(OHEMSampler(8))
    rois = match(proposals, targets)
    outputs = model.head(model.feature_map(images), rois)
    model.backbone.freeze("features")
    assert all(map(torch.equal, outputs, model.head(model.feature_map(images), rois)))
