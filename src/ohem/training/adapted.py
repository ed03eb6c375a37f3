"""A detector of torchvision, called as ours are, so that one loop and one evaluation serve all."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ohem.detection.detector import Detector
from ohem.rois import ignored


class TorchvisionDetector(Detector):
    """Proposals are not looked at: such a detector makes its own.

    Its `state_dict` is that of `model`, so that checkpoints load into torchvision's model and back.

    Args:
        model: any of torchvision's detectors.
        mined: whether it was given to `with_ohem`, whose mining knows objects that are marked `ignore`. Without, they
            are not shown to it, as torchvision's own training scripts leave out crowds.
    """

    def __init__(self, model: nn.Module, mined: bool) -> None:
        super().__init__()
        self.model, self.mined = model, mined

    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in train mode, detections in eval mode."""
        shown = [image.float() / 255 for image in images]
        if targets is not None and not self.mined:
            targets = [_without_ignored(target) for target in targets]
        outputs: dict[str, Tensor] | list[dict[str, Tensor]] = self.model(shown, targets)
        return outputs

    def detect(
        self, images: Sequence[Tensor], scales: Sequence[float], proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detections of one image, which is given in one size."""
        (image,), (scale,) = images, scales
        ((found),) = self.forward([image], [proposals])
        assert isinstance(found, dict)  # in eval mode
        height, width = size
        limit = found["boxes"].new_tensor([width, height, width, height])
        return {**found, "boxes": torch.minimum(found["boxes"] / scale, limit)}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of torchvision's model."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """From that of torchvision's model."""
        return self.model.load_state_dict(state_dict, *args, **kwargs)


def _without_ignored(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = ~ignored(target)
    return {name: target[name][kept] for name in ("boxes", "labels")}
