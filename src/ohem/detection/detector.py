"""The interface of a detector for training and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Detector(nn.Module, ABC):
    """A module that is called with images, proposals and, in train mode, targets; see `FastRCNN`."""

    least_size: tuple[int, int] = (0, 0)
    """Lowest (height, width) to which images are padded: what other processes have in the same mini-batch."""
    trained_on: int = 0
    """Number of RoIs of the last mini-batch, over which its losses are means."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def network_image(self, image: Tensor) -> Tensor:
        """Returns `image`, uint8 (3, H, W), in the size that the network gets; mined RoIs are in its pixels."""
        return image

    def network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns (height, width) that the network gets of an image of `size` (height, width)."""
        return size

    def number_trained_on(self, loss: str) -> Tensor | int:
        """Returns the number of RoIs or anchors of the last mini-batch that `loss` was divided by; 0 if by 1."""
        return self.trained_on

    @abstractmethod
    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Returns losses in train mode and detections in eval mode; see `FastRCNN.forward`."""

    @abstractmethod
    def detect(
        self, images: Sequence[Tensor], scales: Sequence[float], proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detects objects in one image that is given in one or several sizes; see `FastRCNN.detect`."""
