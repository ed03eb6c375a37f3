"""Spatial pyramid pooling (He et al., SPPnet, ECCV 2014, section 2.2) as the first layer of a RoI network.

R: RoIs   C: channels of the feature map
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ohem.detection.backbones.base import Backbone

LEVELS = (6, 3, 2, 1)
"""Bins along a side at each level, 50 bins in all (SPPnet, section 4.1)."""
FIRST = "roi_head.1."
"""Prefix of the tensors of the first linear layer."""


class SpatialPyramid(nn.Module):
    """Makes the features of all levels of pooled RoIs: [R, C, 6, 6] -> [R, 50 C], the finest level first.

    Its input is RoIPool of 6 x 6 cells. The borders of 3 x 3, 2 x 2 and 1 x 1 bins are among those of 6 x 6, also when
    they are rounded to cells of the feature map. So a bin of a coarser level is the maximum over the finer ones in it,
    a RoI is pooled once, and both passes of OHEM have the same pyramid.
    """

    def forward(self, pooled: Tensor) -> Tensor:
        """Computes the features of R RoIs; their levels, channels, rows and columns follow each other in this order."""
        # In this layout a CPU takes a quarter of the time for the maxima.
        cells = pooled.contiguous(memory_format=torch.channels_last)
        coarser = [functional.max_pool2d(cells, LEVELS[0] // bins).flatten(1) for bins in LEVELS[1:]]
        return torch.cat([pooled.flatten(1), *coarser], dim=1)


def with_pyramid(backbone: Backbone) -> Backbone:
    """Replaces RoIPool before the RoI network of `backbone` by pyramid pooling, in place; returns the backbone.

    The first linear layer is new, with random weights: those of a published file are for another number of inputs.

    Args:
        backbone: its RoI network is a sequence of a flattening, a linear layer and any others.

    Raises:
        ValueError: the RoI network is another.
    """
    layers = backbone.roi_head
    flatten, old = layers[:2] if isinstance(layers, nn.Sequential) and len(layers) > 1 else (None, None)
    if not isinstance(layers, nn.Sequential) or not isinstance(flatten, nn.Flatten) or not isinstance(old, nn.Linear):
        raise ValueError("backbone must have a RoI network that begins with nn.Flatten and nn.Linear, as that of VGG16")
    first = nn.Linear(backbone.channels * sum(bins**2 for bins in LEVELS), old.out_features)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.zeros_(first.bias)
    layers[0], layers[1] = SpatialPyramid(), first
    backbone.pool_size = LEVELS[0]
    published = backbone.pretrained
    if published.covers(FIRST):
        convolutions = sum(isinstance(module, nn.Conv2d) for module in backbone.features.modules())
        caffe = (*published.caffe[:convolutions], *published.caffe[convolutions + 1 :])
        backbone.pretrained = replace(published, caffe=caffe, replaced=FIRST)
    return backbone
