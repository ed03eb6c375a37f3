"""Backbones: `vgg16` and `vgg_cnn_m_1024` of the paper, smaller and newer ones, and one to train from scratch."""

from collections.abc import Callable

from ohem.detection.backbones.base import Backbone, Normalisation, Pretrained, init_head
from ohem.detection.backbones.pyramid import with_pyramid
from ohem.detection.backbones.tiny import tiny
from ohem.detection.backbones.torchvision import mobilenet_v2, resnet50, squeezenet1_0
from ohem.detection.backbones.vgg import vgg16, vgg_cnn_m_1024

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "vgg16": vgg16,
    "vgg_cnn_m_1024": vgg_cnn_m_1024,
    "squeezenet1_0": squeezenet1_0,
    "mobilenet_v2": mobilenet_v2,
    "resnet50": resnet50,
    "tiny": tiny,
}
"""Constructor of each backbone that recipes and the command line can name."""

__all__ = [
    "BACKBONES",
    "Backbone",
    "Normalisation",
    "Pretrained",
    "init_head",
    "mobilenet_v2",
    "resnet50",
    "squeezenet1_0",
    "tiny",
    "vgg16",
    "vgg_cnn_m_1024",
    "with_pyramid",
]
