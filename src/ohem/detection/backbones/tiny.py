"""The network of `ohem demo`, which two CPU cores train from scratch in minutes."""

from torch import nn

from ohem.detection.backbones.base import Backbone, Normalisation, new_fc_head

CHANNELS = (24, 48, 96, 128, 128)


def tiny(width: int = 128) -> Backbone:
    """Makes five 3x3 convolutions with group norm up to stride 8, RoI features of 5x5, and two linear layers.

    It has group norm, since statistics of one or two images are useless, and no dropout, since the network is too small
    to overfit in the steps of the demo. Nothing is frozen.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, stride in zip(CHANNELS, (2, 2, 2, 1, 1), strict=True):
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    return Backbone(
        nn.Sequential(*layers),
        new_fc_head(inputs * 5 * 5, width, width, dropout=0.0),
        stride=8,
        channels=inputs,
        pool_size=5,
        dim=width,
        normalisation=Normalisation("rgb", (128.0,) * 3, (64.0,) * 3),
    )
