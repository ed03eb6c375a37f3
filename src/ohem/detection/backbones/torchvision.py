"""torchvision's SqueezeNet, MobileNetV2 and ResNet-50, divided at the RoI pooling.

Batch norm is frozen, so that no forward pass, mining included, changes its statistics.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models import squeezenet1_0 as torchvision_squeezenet1_0
from torchvision.ops import FrozenBatchNorm2d

from ohem.detection.backbones.base import IMAGENET, Backbone, Normalisation, Pretrained, new_fc_head

CAFFE = Normalisation("bgr", (104.0, 117.0, 123.0))
CAFFE_LAYERS = (
    "conv1",
    *(f"fire{i}/{part}" for i in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")),
)
INPUT = Normalisation("rgb", (128.0,) * 3, (128.0,) * 3)
"""Input normalisation of the weights of TensorFlow's authors and others; torchvision's weights state another."""


def squeezenet1_0(width: int = 512, dropout: float = 0.5) -> Backbone:
    """Makes torchvision's layers and a new RoI network of two linear layers of `width`; freezes conv1, fire2, fire3.

    The input is that of the Caffe release (BGR, 0-255, minus the mean) unless the weights state another.
    """
    backbone = Backbone(
        torchvision_squeezenet1_0(weights=None).features,
        new_fc_head(512 * 7 * 7, width, width, dropout=dropout),
        stride=16,
        channels=512,
        pool_size=7,
        dim=width,
        normalisation=CAFFE,
        pretrained=Pretrained(
            names={"features.": "features."}, torchvision="squeezenet1_0", caffe=CAFFE_LAYERS, caffe_input=CAFFE
        ),
    )
    return backbone.freeze("features.0", "features.3", "features.4")


def mobilenet_v2(width: int = 512, dropout: float = 0.5) -> Backbone:
    """Makes torchvision's blocks up to the 320-channel one at stride 16, and a new RoI network.

    The blocks up to stride 4 are frozen. The last 1x1 convolution to 1280 channels is left out: it would make the first
    linear layer, which thousands of RoIs run through, four times as large, and adds no spatial context. The input is
    RGB, (x - 128) / 128, unless the weights state another.
    """
    blocks = torchvision_mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d).features[:18]
    _dilate(blocks[14:])
    backbone = Backbone(
        blocks,
        new_fc_head(320 * 7 * 7, width, width, dropout=dropout),
        stride=16,
        channels=320,
        pool_size=7,
        dim=width,
        normalisation=INPUT,
        pretrained=Pretrained(names={"features.": "features."}, torchvision="mobilenet_v2"),
    )
    return backbone.freeze(*(f"features.{i}" for i in range(4)))


def resnet50() -> Backbone:
    """Makes conv1 to layer3, RoI features of 14x14, layer4, average pooling; freezes batch norm, conv1 and layer1."""
    net = torchvision_resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    features = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    head = [("layer4", net.layer4), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    backbone = Backbone(
        nn.Sequential(OrderedDict((name, getattr(net, name)) for name in features)),
        nn.Sequential(OrderedDict(head)),
        stride=16,
        channels=1024,
        pool_size=14,
        dim=2048,
        normalisation=IMAGENET,
        pretrained=Pretrained(names={"features.": "", "roi_head.": ""}, torchvision="resnet50"),
    )
    return backbone.freeze("features.conv1", "features.layer1")


def _dilate(stage: nn.Module) -> None:
    """Removes the stride of 2 of a stage; dilation 2 gives its later 3x3 layers the same pixels as before."""
    for conv in stage.modules():
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size == (1, 1):
            continue
        if conv.stride == (2, 2):
            conv.stride = (1, 1)
        else:
            conv.dilation = conv.padding = (2, 2)
