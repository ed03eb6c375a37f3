"""What a detector needs of a network: a convolutional part, a RoI part, and the input that its weights were made for.

N: images   R: RoIs   C: channels of the feature map   S: side of a pooled RoI   D: features of a RoI
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """(pixel - mean) / std: mean and std in units of 0-255, in the network's own channel order."""

    order: Literal["rgb", "bgr"]
    mean: Triple
    std: Triple = (1.0, 1.0, 1.0)

    @classmethod
    def unit(cls, mean: Sequence[float], std: Sequence[float]) -> "Normalisation":
        """The same from mean and std in units of 0-1 and RGB order, as torchvision states them."""
        return cls("rgb", cast(Triple, tuple(255 * m for m in mean)), cast(Triple, tuple(255 * s for s in std)))


IMAGENET = Normalisation.unit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Pretrained:
    """Where the tensors of a backbone lie in the weight files that others publish.

    names: prefix of our tensor -> prefix of theirs in a torchvision state dict. A tensor under no prefix is new.
    torchvision: the model's name there, "" if torchvision has none.
    caffe: the names of the Caffe layers, in the order of our layers with weights; empty if there is no such model.
    caffe_input: what the Caffe model was trained on.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    torchvision: str = ""
    caffe: tuple[str, ...] = ()
    caffe_input: Normalisation | None = None

    def covers(self, name: str) -> bool:
        """Whether published weights hold our tensor `name`, so that a file without it does not fit."""
        return name.startswith(tuple(self.names)) if self.names else bool(self.caffe)


class Backbone(nn.Module):
    """A network cut in two at the RoI pooling (paper, section 3), with its own input normalisation.

    features: float [N, 3, H, W] -> [N, channels, about H / stride, about W / stride].
    roi_head: pooled features [R, channels, pool_size, pool_size] -> [R, dim], up to before the two output layers.

    The normalisation is kept in buffers, so that a checkpoint is evaluated on the input that it was trained with.
    """

    input_order: Tensor
    input_mean: Tensor
    input_std: Tensor
    feature_scale: Tensor
    """What `forward` multiplies the feature map by; 1 until `init_head` measures it."""

    def __init__(
        self,
        features: nn.Module,
        roi_head: nn.Module,
        *,
        stride: int,
        channels: int,
        pool_size: int,
        dim: int,
        normalisation: Normalisation,
        pretrained: Pretrained | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.roi_head = roi_head
        self.stride = stride
        self.channels = channels
        self.pool_size = pool_size
        self.dim = dim
        self.pretrained = pretrained or Pretrained()
        self.register_buffer("input_order", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("input_mean", torch.zeros(3))
        self.register_buffer("input_std", torch.zeros(3))
        self.register_buffer("feature_scale", torch.ones(()))
        self.normalisation = normalisation

    @property
    def normalisation(self) -> Normalisation:
        """The input that the present weights were made for; `load_weights` sets it together with them."""
        mean, std = (cast(Triple, tuple(b.tolist())) for b in (self.input_mean, self.input_std))
        return Normalisation("bgr" if self.input_order[0] == 2 else "rgb", mean, std)

    @normalisation.setter
    def normalisation(self, value: Normalisation) -> None:
        self.input_order.copy_(torch.tensor([2, 1, 0] if value.order == "bgr" else [0, 1, 2]))
        self.input_mean.copy_(torch.tensor(value.mean))
        self.input_std.copy_(torch.tensor(value.std))

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] RGB -> float [3, H, W] as the network expects it, on the backbone's device."""
        pixels = image.to(self.input_mean.device)[self.input_order].to(self.input_mean.dtype)
        return (pixels - self.input_mean[:, None, None]) / self.input_std[:, None, None]

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """N images uint8 [3, h, w] RGB -> [N, channels, H', W'].

        Smaller images are padded at the right and bottom with zeros after normalisation, as in Caffe's blobs.
        ValueError: an image is of another type.
        """
        for image in images:
            if image.dtype != torch.uint8:  # in 0-1, as torchvision's detectors take them, they would all look black
                raise ValueError(f"images must be uint8, 0 to 255, not {image.dtype}: give (image * 255).byte()")
        height, width = (max(image.shape[i] for image in images) for i in (1, 2))
        # On this layout, which the layers hand on, convolutions on CPUs are up to twice as fast.
        batch = self.input_mean.new_zeros(len(images), 3, height, width).to(memory_format=torch.channels_last)
        for blob, image in zip(batch, images, strict=True):
            blob[:, : image.shape[1], : image.shape[2]] = self.normalise(image)
        return cast(Tensor, self.features(batch) * self.feature_scale)

    def freeze(self, *names: str) -> "Backbone":
        """Take the parameters of these submodules ("features.0") out of training, and return the backbone."""
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        return self


def fc_head(inputs: int, *widths: int, dropout: float) -> nn.Sequential:
    """Flatten, then for each width a linear layer, ReLU and dropout: [R, C, S, S] -> [R, widths[-1]]."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(n, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def new_fc_head(inputs: int, *widths: int, dropout: float) -> nn.Sequential:
    """`fc_head` for training from scratch: He's initialisation, biases 0."""
    head = fc_head(inputs, *widths, dropout=dropout)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return head


@torch.no_grad()
def init_head(backbone: Backbone, images: Sequence[Tensor]) -> float:
    """Scale the features so that a new head's first linear layer has outputs of standard deviation 1; the factor.

    Features of pre-trained networks may be large (SqueezeNet's are): training would start at a loss of tens, and the
    gradient of the layer's weights, proportional to the features, would allow only tiny learning rates. Scaling the
    features, not the weights, cures both.
    Measured on the RoIs of fixed windows of each image (uint8 [3, h, w] RGB): all of it, and its four quarters.
    Deterministic. A head that published weights fill, or that has no linear layer, is left alone (factor 1).
    """
    linears = ((n, m) for n, m in backbone.roi_head.named_modules(prefix="roi_head") if isinstance(m, nn.Linear))
    name, linear = next(linears, ("", None))
    if linear is None or backbone.pretrained.covers(f"{name}."):
        return 1.0
    pooled = [_pooled_windows(backbone, image) for image in images]
    scale = nn.functional.linear(torch.cat(pooled).flatten(1), linear.weight).std()
    factor = 1 / scale.clamp(min=1e-6)
    backbone.feature_scale.mul_(factor)
    return factor.item()


def _pooled_windows(backbone: Backbone, image: Tensor) -> Tensor:
    features = backbone([image])
    h, w = (float(n) for n in features.shape[2:])
    windows = [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    boxes = features.new_tensor(windows) * features.new_tensor([w, h, w, h]) - features.new_tensor([0, 0, 1, 1])
    return cast(Tensor, roi_pool(features, [boxes], backbone.pool_size))
