"""Features that are aware of the segmentation (MR-CNN, section 4): a network that learns foreground from boxes alone.

N: images   K: foreground classes   H, W: feature map   G: objects of an image   R: RoIs
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ohem.detection.backbones import Backbone
from ohem.detection.backbones.base import new_fc_head
from ohem.detection.windows import own_cells
from ohem.targets import ignored

POOL_SIZE = 9


class ForegroundNetwork(nn.Module):
    """A network that predicts for each cell of the feature map which classes have an object there.

    The RoI network pools its last hidden layer. Its loss does not change the convolutional network, nor the losses of
    RoIs its weights: as in MR-CNN, its training is separate.

    Args:
        backbone: it is as wide as the feature map of this (VGG16: 512 channels).
        classes: number of foreground classes K.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        width = backbone.channels
        self.stride = backbone.stride
        self.hidden = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
        )
        self.scores = nn.Conv2d(width, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Computes the hidden layer of the feature map (N, C, H, W), of the same shape."""
        hidden: Tensor = self.hidden(features.detach())
        return hidden

    def loss(
        self,
        hidden: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        sizes: Sequence[tuple[int, int]],
        images: Tensor,
    ) -> Tensor:
        """Computes the mean log loss of cells and classes, a scalar.

        A cell whose centre is in the box of an object is foreground of its class. Cells in ignored regions, and beyond
        an image, are left out. Each image has the weight of its RoIs that are trained on, so that several processes
        have the loss of one.

        Args:
            hidden: hidden layer (N, C, H, W), from `forward`.
            targets: N dicts as for `match`.
            sizes: N (height, width) of the images, in pixels.
            images: (R,) int64, images of the RoIs that are trained on.
        """
        scores = self.scores(hidden).float()
        labels = torch.stack([self._cells(scores[i], target, False) for i, target in enumerate(targets)])
        left_out = torch.stack([self._cells(scores[i], target, True) for i, target in enumerate(targets)])
        counted = own_cells(torch.ones_like(scores), sizes, self.stride) * (1 - left_out.amax(dim=1, keepdim=True))
        losses = functional.binary_cross_entropy_with_logits(scores, labels, reduction="none") * counted
        means = losses.sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)
        return means[images].sum() / max(len(images), 1)

    def _cells(self, scores: Tensor, target: Mapping[str, Tensor], ignore: bool) -> Tensor:
        """Returns 1 for the cells of `scores` (K, H, W) with the centre in a box of each class, objects or ignored."""
        wanted = ignored(target) == ignore
        y, x = (self.stride * (torch.arange(side, device=scores.device) + 0.5) for side in scores.shape[1:])
        x1, y1, x2, y2 = (side[:, None] for side in target["boxes"].unbind(dim=1))
        inside = ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None, :]
        inside = (inside & wanted[:, None, None]).to(scores)
        return torch.zeros_like(scores).index_add(0, target["labels"] - 1, inside).clamp(max=1)


def foreground_dim(backbone: Backbone) -> int:
    """Returns the number of features of a RoI that `foreground_head` makes."""
    return max(backbone.dim // 2, 1)


def foreground_head(backbone: Backbone) -> nn.Sequential:
    """Makes the RoI network of pooled hidden layers: one linear layer, half as wide as that of `backbone`.

    VGG16: 9 x 9 cells of 512 channels to 2048 features, as in MR-CNN.
    """
    dropout = next((m.p for m in backbone.roi_head.modules() if isinstance(m, nn.Dropout)), 0.0)
    return new_fc_head(backbone.channels * POOL_SIZE**2, foreground_dim(backbone), dropout=dropout)
