"""What the training loop and the evaluation ask of a detector, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Detector(nn.Module, ABC):
    """Called on images, proposals and, in train mode, targets, as `FastRCNN` is; then it returns losses by name."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in train mode, detections in eval mode; see `FastRCNN.forward`."""

    @abstractmethod
    def detect(
        self, images: Sequence[Tensor], scales: Sequence[float], proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detections of one image that is given in one or several sizes; see `FastRCNN.detect`."""
