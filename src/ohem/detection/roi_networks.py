"""The RoI network of each region of a RoI: features for the pass that trains, and those of the distinct windows.

R: RoIs   N: images   W: distinct windows   D: features of a RoI, of all regions together
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ohem.detection.backbones import Backbone
from ohem.detection.foreground import POOL_SIZE
from ohem.detection.regions import Region
from ohem.detection.windows import combined, counts_of, distinct, windows_of
from ohem.draws import Use, begin_image, is_seeded
from ohem.kernels.roi_pool import roi_pools
from ohem.rois import RoIs

# Number of RoIs that go through the read-only pass at once: it bounds the memory for any R. A GPU is slow with few.
CHUNK, CHUNK_ON_GPU = 256, 2048


@dataclass(frozen=True)
class RoINetworks:
    """The RoI network of each region, and how its windows are pooled. It has no weights of its own.

    Args:
        networks: a RoI network for each region.
        regions: the regions of a RoI, whose features are concatenated in this order.
        backbone: its stride, channels and size of the pooled windows.
        foreground: number of the region that is pooled from the channels of foreground, which follow those of the
            backbone; None if there is none.
    """

    networks: Sequence[nn.Module]
    regions: Sequence[Region]
    backbone: Backbone
    foreground: int | None

    def features(self, features: Tensor, rois: RoIs) -> Tensor:
        """Computes the features (R, D) of `rois` on `features` (N, C, H, W), with gradient."""
        whole = max(len(rois), 1)
        pooled = [next(self.pools(features, i, self._windows(rois, r), whole)) for i, r in enumerate(self.regions)]
        if not self._draws():
            return torch.cat(self._hidden([[part] for part in pooled]), dim=1)
        order = rois.images.argsort(stable=True)
        counts = counts_of(rois.images, len(features))
        hidden = []
        for i, parts in enumerate(zip(*(torch.split(part[order], counts) for part in pooled), strict=True)):
            begin_image(i, Use.TRAINING_PASS, features.device)
            hidden.append(torch.cat(self._hidden([[part] for part in parts]), dim=1))
        return torch.cat(hidden)[order.argsort()]

    def distinct_parts(self, features: Tensor, rois: RoIs) -> tuple[Iterator[Tensor], Tensor]:
        """Computes the features of the W distinct RoIs, in chunks that bound the memory.

        RoIPool rounds to cells of the feature map, and RoIs with the same cells have identical features. With several
        regions, the features of each are in memory at once.

        Args:
            features: (N, C, H, W), the feature map.
            rois: R RoIs, in pixels of the images of `features`.

        Returns:
            An iterator of chunks (C, D), W rows in all, and (R,) int64, which of the W rows each RoI has.
        """
        windows, which = zip(*(distinct(self._windows(rois, region)) for region in self.regions), strict=True)
        chunk = CHUNK if features.device.type == "cpu" else CHUNK_ON_GPU
        if len(windows) == 1:
            return self._streamed(features, windows[0], chunk), which[0]
        if self._draws():
            hidden = self._drawn(features, windows, chunk)
        else:
            hidden = self._hidden([self.pools(features, i, part, chunk) for i, part in enumerate(windows)])
        index, joint = combined(which)
        rows = (part.unbind(1) for part in torch.split(index, chunk))
        return (torch.cat([own[r] for own, r in zip(hidden, row, strict=True)], dim=1) for row in rows), joint

    def pools(self, features: Tensor, region: int, windows: Tensor, chunk: int) -> Iterator[Tensor]:
        """Yields the pooled windows (C, channels, size, size) of a region, by its number, `chunk` at a time."""
        channels, size = self.backbone.channels, self.backbone.pool_size
        if self.foreground is None:
            return roi_pools(features, windows, size, chunk)
        if region != self.foreground:
            return roi_pools(features[:, :channels], windows, size, chunk)
        return roi_pools(features[:, channels:].detach(), windows, POOL_SIZE, chunk)

    def _windows(self, rois: RoIs, region: Region) -> Tensor:
        return windows_of(rois, region, self.backbone.stride)

    def _draws(self) -> bool:
        """Returns whether each image needs a pass of its own, with its own seed, through the dropout layers."""
        return is_seeded() and any(
            isinstance(layer, nn.Dropout) and layer.training and layer.p > 0
            for network in self.networks
            for layer in network.modules()
        )

    def _hidden(self, chunks: Iterable[Iterable[Tensor]]) -> list[Tensor]:
        """Computes the features (W, D) of the pooled windows of each region, which come in chunks."""
        return [
            torch.cat([network(pooled) for pooled in part]) for network, part in zip(self.networks, chunks, strict=True)
        ]

    def _streamed(self, features: Tensor, windows: Tensor, chunk: int) -> Iterator[Tensor]:
        """Yields the features (C, D) of the windows of a single region, `chunk` at a time."""
        (network,) = self.networks
        if not self._draws():
            yield from map(network, self.pools(features, 0, windows, chunk))
            return
        for i, (own, alone) in enumerate(_by_image(features, windows)):
            begin_image(i, Use.READ_ONLY_PASS, features.device)
            yield from map(network, self.pools(own, 0, alone, chunk))

    def _drawn(self, features: Tensor, windows: Sequence[Tensor], chunk: int) -> list[Tensor]:
        """Computes the features (W, D) of the windows of each region, image by image, with the numbers of each."""
        hidden = []
        for i, parts in enumerate(zip(*(_by_image(features, part) for part in windows), strict=True)):
            begin_image(i, Use.READ_ONLY_PASS, features.device)
            hidden.append(self._hidden([self.pools(own, k, alone, chunk) for k, (own, alone) in enumerate(parts)]))
        return [torch.cat(column) for column in zip(*hidden, strict=True)]


def _by_image(features: Tensor, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the feature map (1, C, H, W) of each image and its windows, as those of image 0; they are by image."""
    for i, part in enumerate(torch.split(windows, counts_of(windows[:, 0], len(features)))):
        yield features[i : i + 1], torch.cat([torch.zeros_like(part[:, :1]), part[:, 1:]], dim=1)
