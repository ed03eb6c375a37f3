"""A network small enough to be trained from scratch on two CPU cores in minutes: the one of `ohem demo`."""

from torch import nn

from ohem.detection.backbones.base import Backbone, Normalisation, new_fc_head


def tiny(width: int = 128) -> Backbone:
    """Five 3x3 convolutions with group norm to stride 8, RoI features of 5x5, two linear layers; nothing frozen.

    Group norm, since batches of one or two images have no statistics worth keeping, and a mining forward moves none.
    No dropout: the network is too small to over-fit in the demo's few hundred steps.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, stride in ((24, 2), (48, 2), (96, 2), (128, 1), (128, 1)):
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
