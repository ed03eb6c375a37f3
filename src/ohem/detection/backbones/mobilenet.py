"""MobileNetV2, with batch norm frozen so that no forward pass, mining included, moves its statistics."""

from torch import nn
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2
from torchvision.ops import FrozenBatchNorm2d

from ohem.detection.backbones.base import Backbone, Normalisation, Pretrained, new_fc_head

INPUT = Normalisation("rgb", (128.0,) * 3, (128.0,) * 3)
"""Of the weights that TensorFlow's authors published, and others after them; torchvision's say otherwise."""


def mobilenet_v2(width: int = 512, dropout: float = 0.5) -> Backbone:
    """torchvision's blocks to the 320-channel one at stride 16, a new RoI network; the blocks to stride 4 frozen.

    The last 1x1 convolution to 1280 channels is left out: it would make the first linear layer, which every one of
    thousands of RoIs runs through, four times as large, and adds no spatial context.
    Its input is RGB, (x - 128) / 128, unless the weights say otherwise.
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


def _dilate(stage: nn.Module) -> None:
    """Undo the stage's stride of 2; the 3x3 layers after it see the same pixels as before through dilation 2."""
    for conv in stage.modules():
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size == (1, 1):
            continue
        if conv.stride == (2, 2):
            conv.stride = (1, 1)
        else:
            conv.dilation = conv.padding = (2, 2)
