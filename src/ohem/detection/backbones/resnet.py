"""ResNet-50 cut after its fourth stage ("C4"): the fifth is the RoI network."""

from collections import OrderedDict

from torch import nn
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.ops import FrozenBatchNorm2d

from ohem.detection.backbones.base import IMAGENET, Backbone, Pretrained


def resnet50() -> Backbone:
    """conv1 to layer3, RoI features of 14x14, layer4 and global average pooling; batch norm, conv1, layer1 frozen."""
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
