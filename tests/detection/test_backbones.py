"""Backbones compared with the authors' layer tables, torchvision's models and OpenCV's Caffe importer."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50

from ohem.detection.backbones import BACKBONES, Backbone, Normalisation, init_head
from ohem.detection.backbones.base import Pretrained, new_fc_head
from ohem.detection.backbones.vgg import CAFFE as VGG
from tests.helpers.caffe_files import caffemodel, prototxt
from tests.helpers.contracts import check_backbone
from tests.helpers.reference import needs_shared, reference

CAFFE_NETS = [("vgg16", "VGG16"), ("vgg_cnn_m_1024", "VGG_CNN_M_1024")]


def on_meta(name: str) -> Backbone:
    """Returns the network without its (up to 135 million) values."""
    with torch.device("meta"):
        return BACKBONES[name]()


def noise(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=rng) for shape in shapes]


@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(layer: nn.Linear) -> None:  # drawing the 120 million values of VGG16's fc6 takes seconds
        nn.init.constant_(layer.weight, 1e-4)
        nn.init.zeros_(layer.bias)

    if name.startswith("vgg"):
        monkeypatch.setattr(nn.Linear, "reset_parameters", constant)
    check_backbone(BACKBONES[name]())


@pytest.mark.parametrize(
    ("name", "stride", "channels", "pool_size", "dim"),
    [
        ("vgg16", 16, 512, 7, 4096),
        ("vgg_cnn_m_1024", 16, 512, 6, 1024),
        ("squeezenet1_0", 16, 512, 7, 512),
        ("mobilenet_v2", 16, 320, 7, 512),
        ("resnet50", 16, 1024, 14, 2048),
        ("tiny", 8, 128, 5, 128),
    ],
)
@pytest.mark.usefixtures("all_channels")
def test_sizes(name: str, stride: int, channels: int, pool_size: int, dim: int) -> None:
    backbone = on_meta(name)
    assert (backbone.stride, backbone.channels, backbone.pool_size, backbone.dim) == (stride, channels, pool_size, dim)


# The two networks of the paper


def conv_and_pool(net: nn.Module) -> Iterator[nn.Module]:
    return (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d))


def layers_of(key: str, *kinds: str) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = reference("architectures")[key]["fast_rcnn_original_train"]
    return [layer for layer in layers if layer["type"] in kinds]


@needs_shared
@pytest.mark.parametrize(("name", "key"), CAFFE_NETS)
@pytest.mark.parametrize("size", ["600x1000", "600x800", "224x224"])
def test_feature_sizes_are_caffes(name: str, key: str, size: str) -> None:
    expected = reference("architectures")[key]["feature_sizes"][size]
    backbone, sizes = on_meta(name), []
    for module in conv_and_pool(backbone.features):
        module.register_forward_hook(lambda _m, _i, output: sizes.append(list(output.shape[2:])))
    height, width = map(int, size.split("x"))
    backbone([torch.empty(3, height, width, dtype=torch.uint8, device="meta")])
    assert sizes == [rest for _, *rest in expected]


@needs_shared
@pytest.mark.parametrize(("name", "key"), CAFFE_NETS)
def test_layers_are_the_authors(name: str, key: str) -> None:
    backbone = on_meta(name)
    ours = list(conv_and_pool(backbone.features))
    theirs = layers_of(key, "Convolution", "Pooling")
    assert len(ours) == len(theirs)
    for module, layer in zip(ours, theirs, strict=True):
        if layer["type"] == "Convolution":
            assert isinstance(module, nn.Conv2d)
            assert module.kernel_size == (layer["kernel_size"],) * 2
            assert module.stride == (layer.get("stride", 1),) * 2
            assert module.padding == (layer.get("pad", 0),) * 2
            assert module.out_channels == layer["num_output"]
            frozen = layer["lr_mult"] == [0, 0]
            assert [p.requires_grad for p in module.parameters()] == [not frozen] * 2
        else:
            assert isinstance(module, nn.MaxPool2d)
            assert (module.kernel_size, module.stride) == (layer["kernel_size"], layer["stride"])
            assert (module.padding, module.ceil_mode) == (0, True)


@needs_shared
@pytest.mark.parametrize(("name", "key"), CAFFE_NETS)
def test_roi_network_is_the_authors(name: str, key: str) -> None:
    backbone = on_meta(name)
    (pool,) = layers_of(key, "ROIPooling")
    assert backbone.pool_size == pool["pooled_w"] == pool["pooled_h"]
    assert 1 / backbone.stride == pool["spatial_scale"]
    linears = [m for m in backbone.roi_head if isinstance(m, nn.Linear)]
    widths = [layer["num_output"] for layer in layers_of(key, "InnerProduct") if layer["name"].startswith("fc")]
    assert [m.out_features for m in linears] == widths
    assert linears[0].in_features == backbone.channels * backbone.pool_size**2
    ratios = [m.p for m in backbone.roi_head if isinstance(m, nn.Dropout)]
    assert ratios == [layer["dropout_ratio"] for layer in layers_of(key, "Dropout")]


@needs_shared
@pytest.mark.parametrize(("name", "key"), CAFFE_NETS)
def test_caffe_names_are_in_the_order_of_our_layers(name: str, key: str) -> None:
    names = [layer["name"] for layer in layers_of(key, "Convolution", "InnerProduct")]
    assert list(on_meta(name).pretrained.caffe) == names[:-2]  # less the two output layers


def test_caffe_names_of_squeezenet() -> None:
    """Checks that features.3.squeeze, .expand1x1 and .expand3x3 are fire2/squeeze1x1, ..., up to fire9."""
    backbone = on_meta("squeezenet1_0")
    convs = [name for name, module in backbone.features.named_modules() if isinstance(module, nn.Conv2d)]
    assert [name.rpartition(".")[2] for name in convs[1:]] == [
        name.rpartition("/")[2].replace("squeeze1x1", "squeeze") for name in backbone.pretrained.caffe[1:]
    ]
    assert backbone.pretrained.caffe[-1] == "fire9/expand3x3"


@needs_shared
@pytest.mark.parametrize(("name", "key"), CAFFE_NETS)
def test_features_are_those_of_opencvs_caffe_importer(name: str, key: str) -> None:
    """Compares whole conv networks: LRN's alpha, ceil-mode pooling on odd sizes, the order of the layers.

    LRN's k is not compared: OpenCV assumes 1 in a Caffe model.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        features = BACKBONES[name]().features
    features = features.to_empty(device="cpu")
    blobs = []
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            blobs.append([p.detach().numpy() for p in module.parameters()])
        elif isinstance(module, nn.LocalResponseNorm):
            module.k = 1
    layers = layers_of(key, "Convolution", "ReLU", "LRN", "Pooling")
    layers = [layer for layer in layers if layer["bottom"] not in ("fc6", "fc7")]
    names = [layer["name"] for layer in layers if layer["type"] == "Convolution"]
    model = caffemodel((name, "Convolution", pair) for name, pair in zip(names, blobs, strict=True))
    text = prototxt(layers, 91, 118)
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text, np.uint8), np.frombuffer(model, np.uint8))
    image = 50 * torch.randn(1, 3, 91, 118)  # LRN matters on inputs of this size
    net.setInput(image.numpy())
    with torch.no_grad():
        ours = features(image)
    torch.testing.assert_close(ours, torch.from_numpy(net.forward()), rtol=1e-3, atol=1e-3 * ours.std().item())


@needs_shared
def test_lrn_is_caffes() -> None:
    """Checks x / (k + alpha / size * sum of squares over the neighbouring channels) ** beta."""
    layers = layers_of("VGG_CNN_M_1024", "LRN")
    ours = [m for m in on_meta("vgg_cnn_m_1024").features if isinstance(m, nn.LocalResponseNorm)]
    for module, layer in zip(ours, layers, strict=True):
        assert (module.size, module.alpha, module.beta, module.k) == tuple(
            layer[key] for key in ("local_size", "alpha", "beta", "k")
        )
    x = torch.tensor([100.0, 200.0, 300.0, 400.0, 500.0, 600.0])
    middle = 300 / (2 + 5e-4 / 5 * (100**2 + 200**2 + 300**2 + 400**2 + 500**2)) ** 0.75
    edge = 100 / (2 + 5e-4 / 5 * (100**2 + 200**2 + 300**2)) ** 0.75
    actual = ours[0](x[None, :, None, None]).flatten()
    assert actual[2].item() == pytest.approx(middle, rel=1e-5)
    assert actual[0].item() == pytest.approx(edge, rel=1e-5)


# The others


def randomise(net: nn.Module) -> None:
    """Fills batch norm with values that have an effect and keep the size of the signal."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def test_resnet50_is_torchvisions_up_to_its_classifier() -> None:
    net = resnet50(weights=None).eval()
    randomise(net)
    backbone = BACKBONES["resnet50"]()
    state = net.state_dict()
    for part in (backbone.features, backbone.roi_head):
        assert not part.load_state_dict(state, strict=False).missing_keys
    net.fc = nn.Identity()
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone.roi_head(backbone.features(x)), net(x), rtol=1e-4, atol=1e-4)


def test_mobilenet_v2_at_stride_16_holds_torchvisions_stride_32() -> None:
    """Checks the dilation that replaces the stride: every other cell is a cell of torchvision's feature map."""
    net = mobilenet_v2(weights=None).eval()
    randomise(net)
    backbone = BACKBONES["mobilenet_v2"]()
    result = backbone.features.load_state_dict(net.features.state_dict(), strict=False)
    assert not result.missing_keys
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        ours, theirs = backbone.features(x), net.features[:18](x)
    assert ours.shape[2:] == (8, 10)
    torch.testing.assert_close(ours[:, :, ::2, ::2], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("squeezenet1_0", ["0", "3", "4"]),
        ("mobilenet_v2", ["0", "1", "2", "3"]),
        ("resnet50", ["conv1", "layer1"]),
        ("tiny", []),
    ],
)
def test_frozen_layers(name: str, frozen: list[str]) -> None:
    backbone = on_meta(name)
    parts = ((child, list(module.parameters())) for child, module in backbone.features.named_children())
    assert [child for child, ps in parts if ps and not any(p.requires_grad for p in ps)] == frozen


def test_tiny_stays_tiny() -> None:
    backbone = on_meta("tiny")
    assert sum(p.numel() for p in backbone.features.parameters()) < 350_000
    assert sum(p.numel() for p in backbone.roi_head.parameters()) < 500_000


@pytest.mark.parametrize("name", ["squeezenet1_0", "mobilenet_v2", "tiny"])
def test_width_of_the_new_head(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](width=96)
    head = backbone.roi_head(torch.empty(2, backbone.channels, backbone.pool_size, backbone.pool_size, device="meta"))
    assert head.shape == (2, backbone.dim) == (2, 96)


# Normalisation


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (lambda: toy(VGG), [-102.9801, -115.9465, 255 - 122.7717]),
        (BACKBONES["squeezenet1_0"], [-104.0, -117.0, 132.0]),
        (BACKBONES["mobilenet_v2"], [127 / 128, -1.0, -1.0]),
        (BACKBONES["resnet50"], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
    ],
    ids=["vgg", "squeezenet1_0", "mobilenet_v2", "resnet50"],
)
def test_pure_red(backbone: Callable[[], Backbone], expected: list[float]) -> None:
    """Checks that red is the last channel of the input of a Caffe network and the first of the others'."""
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    torch.testing.assert_close(backbone().normalise(red).flatten(), torch.tensor(expected))


def test_mean_and_std_in_units_of_one() -> None:
    backbone = toy(Normalisation.unit((0.5, 0.25, 0.0), (0.25, 0.5, 1.0)))
    white = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(backbone.normalise(white).flatten(), torch.tensor([2.0, 1.5, 1.0]))


# A new head's first layer


def toy(normalisation: Normalisation | None = None, pretrained: Pretrained | None = None) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        nn.Conv2d(3, 4, 3, stride=4, padding=1),
        new_fc_head(4 * 2 * 2, 64, dropout=0.0),
        stride=4,
        channels=4,
        pool_size=2,
        dim=64,
        normalisation=normalisation or Normalisation("rgb", (0.0,) * 3),
        pretrained=pretrained,
    )


def test_init_head_brings_the_first_layer_to_unit_scale() -> None:
    images = noise((32, 48), (40, 24))
    backbone, again = toy(), toy()
    factor = init_head(backbone, images)
    assert factor < 0.1  # features of pixels up to 255 are large
    assert init_head(again, images) == factor
    assert torch.equal(backbone.roi_head[1].weight, again.roi_head[1].weight)
    assert init_head(backbone, images) == pytest.approx(1, rel=1e-4)
    whole = nn.functional.adaptive_max_pool2d(backbone(images[:1]), 2)
    assert 0.5 < backbone.roi_head[1](whole.flatten(1)).std() < 2


def test_init_head_leaves_a_pretrained_head_alone() -> None:
    for pretrained in (Pretrained(names={"roi_head.1.": "fc."}), Pretrained(caffe=("conv1", "fc6"))):
        backbone = toy(pretrained=pretrained)
        before = backbone.roi_head[1].weight.clone()
        assert init_head(backbone, noise((32, 48))) == 1
        assert torch.equal(backbone.roi_head[1].weight, before)


def test_init_head_of_features_that_are_all_zero() -> None:
    backbone = toy()
    nn.init.zeros_(backbone.features.weight)
    nn.init.zeros_(backbone.features.bias)
    init_head(backbone, noise((32, 48)))
    assert backbone.roi_head[1].weight.isfinite().all()


def test_new_head_keeps_the_scale_through_its_layers() -> None:
    torch.manual_seed(0)
    head = new_fc_head(400, 400, 400, 400, dropout=0.0)
    x, scales = torch.randn(200, 400), []
    for layer in head:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            scales.append(x.std().item())
    assert all(0.8 < b / a < 1.25 for a, b in pairwise(scales))
