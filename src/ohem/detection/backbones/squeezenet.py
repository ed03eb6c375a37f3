"""SqueezeNet 1.0: the backbone of the `small` recipes, for one CPU."""

from torchvision.models import squeezenet1_0 as torchvision_squeezenet1_0

from ohem.detection.backbones.base import Backbone, Normalisation, Pretrained, new_fc_head

CAFFE = Normalisation("bgr", (104.0, 117.0, 123.0))
CAFFE_LAYERS = (
    "conv1",
    *(f"fire{i}/{part}" for i in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")),
)


def squeezenet1_0(width: int = 512, dropout: float = 0.5) -> Backbone:
    """torchvision's layers with a new RoI network of two linear layers of `width`; conv1, fire2, fire3 frozen.

    Its input is that of the Caffe release (BGR, 0-255, less the mean) unless the weights say otherwise.
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
