"""Backbones: a convolutional network, a RoI network, and the input normalisation that the weights were trained with.

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
    """Input normalisation (pixel - mean) / std; mean and std in units of 0-255, in the channel order of the network."""

    order: Literal["rgb", "bgr"]
    mean: Triple
    std: Triple = (1.0, 1.0, 1.0)

    @classmethod
    def unit(cls, mean: Sequence[float], std: Sequence[float]) -> "Normalisation":
        """Makes it from mean and std in units of 0-1 and RGB order, as torchvision states them."""
        return cls("rgb", cast(Triple, tuple(255 * m for m in mean)), cast(Triple, tuple(255 * s for s in std)))


IMAGENET = Normalisation.unit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Pretrained:
    """Names of the tensors of a backbone in published weight files.

    Args:
        names: prefix of our tensor -> prefix in a state dict of torchvision. A tensor without prefix is new.
        torchvision: name of the model in torchvision, "" if there is none.
        caffe: names of the Caffe layers, in the order of our layers with weights; empty if there is no Caffe model.
        caffe_input: input normalisation of the Caffe model.
        replaced: prefix of our tensors that are of another shape than the published ones; "" if there are none.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    torchvision: str = ""
    caffe: tuple[str, ...] = ()
    caffe_input: Normalisation | None = None
    replaced: str = ""

    def covers(self, name: str) -> bool:
        """Returns whether published weights have our tensor `name`: a file without it does not fit."""
        if self.replaced and name.startswith(self.replaced):
            return False
        return name.startswith(tuple(self.names)) if self.names else bool(self.caffe)


class Backbone(nn.Module):
    """A network that is divided at the RoI pooling (paper, section 3), with its input normalisation.

    The normalisation is kept in buffers, so that a checkpoint is evaluated on the input that it was trained with.

    Args:
        features: float [N, 3, H, W] -> [N, channels, about H / stride, about W / stride].
        roi_head: pooled features [R, channels, pool_size, pool_size] -> [R, dim], without the two output layers.
        stride: pixels of the image per cell of the feature map.
        channels: number of channels of the feature map (C).
        pool_size: side of a pooled RoI (S).
        dim: number of features of a RoI (D).
        normalisation: input normalisation of the initial weights.
        pretrained: names in published weight files.
    """

    input_order: Tensor
    input_mean: Tensor
    input_std: Tensor
    feature_scale: Tensor
    """Factor of the feature map in `forward`; 1 until `init_head` measures it."""

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
        # Lowest (height, width) to which images are padded: what other processes have in the same mini-batch.
        self.least_size = (0, 0)

    @property
    def normalisation(self) -> Normalisation:
        """Input normalisation of the present weights; `load_weights` sets both."""
        mean, std = (cast(Triple, tuple(b.tolist())) for b in (self.input_mean, self.input_std))
        return Normalisation("bgr" if self.input_order[0] == 2 else "rgb", mean, std)

    @normalisation.setter
    def normalisation(self, value: Normalisation) -> None:
        self.input_order.copy_(torch.tensor([2, 1, 0] if value.order == "bgr" else [0, 1, 2]))
        self.input_mean.copy_(torch.tensor(value.mean))
        self.input_std.copy_(torch.tensor(value.std))

    def normalise(self, image: Tensor) -> Tensor:
        """Converts uint8 [3, H, W] RGB to the float input [3, H, W] of the network, on its device."""
        pixels = image.to(self.input_mean.device)[self.input_order].to(self.input_mean.dtype)
        return (pixels - self.input_mean[:, None, None]) / self.input_std[:, None, None]

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Computes the feature map [N, channels, H', W'] of N images, uint8 [3, h, w] RGB.

        Smaller images are padded at the right and bottom with zeros after normalisation, as in Caffe.

        Raises:
            ValueError: an image is of another dtype.
        """
        for image in images:
            if image.dtype != torch.uint8:  # images in 0-1, as for torchvision's detectors, would be black
                raise ValueError(f"images must be uint8, 0 to 255, not {image.dtype}: give (image * 255).byte()")
        sizes = [self.least_size, *((image.shape[1], image.shape[2]) for image in images)]
        height, width = (max(size[i] for size in sizes) for i in (0, 1))
        # In this layout, which the layers keep, convolutions on CPUs are up to twice as fast.
        batch = self.input_mean.new_zeros(len(images), 3, height, width).to(memory_format=torch.channels_last)
        for blob, image in zip(batch, images, strict=True):
            blob[:, : image.shape[1], : image.shape[2]] = self.normalise(image)
        return cast(Tensor, self.features(batch) * self.feature_scale)

    def new_layer(self) -> nn.Linear | None:
        """Returns the first linear layer of the RoI network if published weights do not fill it, else None."""
        linears = ((n, m) for n, m in self.roi_head.named_modules(prefix="roi_head") if isinstance(m, nn.Linear))
        name, linear = next(linears, ("", None))
        return None if self.pretrained.covers(f"{name}.") else linear

    def freeze(self, *names: str) -> "Backbone":
        """Excludes the parameters of these submodules ("features.0") from training; returns the backbone."""
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        return self


def fc_head(inputs: int, *widths: int, dropout: float) -> nn.Sequential:
    """Makes a RoI network: for each width a linear layer, ReLU and dropout; [R, C, S, S] -> [R, widths[-1]]."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(n, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def new_fc_head(inputs: int, *widths: int, dropout: float) -> nn.Sequential:
    """Makes `fc_head` for training from scratch: He's initialisation, biases 0."""
    head = fc_head(inputs, *widths, dropout=dropout)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return head


@torch.no_grad()
def init_head(backbone: Backbone, images: Sequence[Tensor]) -> float:
    """Scales the features so that the first linear layer of a new head has outputs of standard deviation 1.

    Features of pre-trained networks may be large, as those of SqueezeNet. The training would start at a loss of tens,
    and the gradient of the layer, proportional to the features, would allow only tiny learning rates. Scaling the
    features, not the weights, solves both. A head that published weights fill, or without a linear layer, is kept.

    Args:
        backbone: its `feature_scale` is multiplied by the factor.
        images: uint8 [3, h, w] RGB. The outputs are measured on fixed windows: the whole image and its four quarters.

    Returns:
        The factor, deterministic; 1 if nothing is changed.
    """
    linear = backbone.new_layer()
    if linear is None:
        return 1.0
    pooled = torch.cat([_pooled_windows(backbone, image) for image in images])
    layers = list(backbone.roi_head.children())
    for layer in layers[: layers.index(linear)] if linear in layers else ():
        pooled = layer(pooled)
    scale = nn.functional.linear(pooled.flatten(1), linear.weight).std()
    factor = 1 / scale.clamp(min=1e-6)
    backbone.feature_scale.mul_(factor)
    return factor.item()


def _pooled_windows(backbone: Backbone, image: Tensor) -> Tensor:
    features = backbone([image])
    h, w = (float(n) for n in features.shape[2:])
    windows = [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    boxes = features.new_tensor(windows) * features.new_tensor([w, h, w, h]) - features.new_tensor([0, 0, 1, 1])
    return cast(Tensor, roi_pool(features, [boxes], backbone.pool_size))
