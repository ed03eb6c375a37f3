"""VGG16 and VGG_CNN_M_1024, the two networks of the paper, with the layers of the authors' Caffe models."""

from torch import nn

from ohem.detection.backbones.base import Backbone, Normalisation, Pretrained, fc_head

# The authors' mean pixel (B, G, R).
CAFFE = Normalisation("bgr", (102.9801, 115.9465, 122.7717))

VGG16_CONVS = tuple(
    f"conv{stage}_{i}" for stage, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)
)  # conv1_1, conv1_2, conv2_1, ..., conv5_3


def vgg16(dropout: float = 0.5) -> Backbone:
    """Makes VGG16: conv1_1 to conv5_3, RoIPool 7x7, fc6 and fc7 of 4096; freezes conv1_1 to conv2_2 (paper, section 5).

    The input is that of the Caffe model (BGR, 0-255, minus the mean) unless the weights state another.
    """
    backbone = Backbone(
        _vgg16_features(),
        fc_head(512 * 7 * 7, 4096, 4096, dropout=dropout),
        stride=16,
        channels=512,
        pool_size=7,
        dim=4096,
        normalisation=CAFFE,
        pretrained=Pretrained(
            names={"features.": "features.", "roi_head.1.": "classifier.0.", "roi_head.4.": "classifier.3."},
            torchvision="vgg16",
            caffe=(*VGG16_CONVS, "fc6", "fc7"),
            caffe_input=CAFFE,
        ),
    )
    return backbone.freeze(*(f"features.{i}" for i in (0, 2, 5, 7)))


def vgg_cnn_m_1024(dropout: float = 0.5) -> Backbone:
    """Makes VGG_CNN_M_1024: conv1 to conv5, RoIPool 6x6, fc6 of 4096, fc7 of 1024; freezes conv1 (paper, section 5).

    Its weights are published as a Caffe model only.
    """
    backbone = Backbone(
        _vggm_features(),
        fc_head(512 * 6 * 6, 4096, 1024, dropout=dropout),
        stride=16,
        channels=512,
        pool_size=6,
        dim=1024,
        normalisation=CAFFE,
        pretrained=Pretrained(
            caffe=("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"),
            caffe_input=CAFFE,
        ),
    )
    return backbone.freeze("features.0")


def _vgg16_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(n):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))  # Caffe rounds the size of a pooled map up
    return nn.Sequential(*layers[:-1])  # RoI pooling replaces pool5


def _vggm_features() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 96, 7, stride=2),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2),  # alpha is divided by the 5 channels, as in Caffe
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(96, 256, 5, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(256, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(inplace=True),
    )
