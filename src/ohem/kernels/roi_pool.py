"""RoIPool without gradient for the read-only pass: bit for bit as torchvision's, which is slow on the CPU.

A cell of RoIPool is the maximum over a rectangle of the feature map. Four rectangles whose sides are powers of two
cover any rectangle. Their maxima are tables that are made once for an image: a cell of any size reads four values.

Shapes: R: RoIs   N: images   C, H, W: feature map   S: cells along a side of the pooled RoI
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Number of RoIs that are pooled at once: their values stay in the cache of the processor.
AT_ONCE = 16


def roi_max_pool(features: Tensor, windows: Tensor, size: int) -> Tensor:
    """Pools the maxima of `size` x `size` cells of each window; a cell outside the map is 0.

    Args:
        features: (N, C, H, W) floating, without NaN; or integers that stand for values from 0, their lowest, upwards.
        windows: (R, 5): image, first column, first row, last column, last row on the feature map, whole numbers, both
            ends inclusive.
        size: S.

    Returns:
        (R, C, S, S), equal to `torchvision.ops.roi_pool(features, windows, size)` bit for bit.
    """
    return next(roi_max_pools(features, windows, size, chunk=max(len(windows), 1)))


def roi_max_pools(features: Tensor, windows: Tensor, size: int, chunk: int) -> Iterator[Tensor]:
    """Yields the result of `roi_max_pool` for `chunk` windows at a time, which bounds the memory."""
    with torch.no_grad():
        pool = _Pool(features, windows.long(), size)
    for part in torch.split(torch.arange(len(windows)), chunk):
        yield pool(part)


class _Pool:
    """Tables of a feature map, and the places of the cells of `windows` (R, 5) int64 in them."""

    def __init__(self, features: Tensor, windows: Tensor, size: int) -> None:
        count, self.channels, height, width = features.shape
        self.size = size
        top, bottom = _bounds(windows[:, 2], windows[:, 4], size, height)
        left, right = _bounds(windows[:, 1], windows[:, 3], size, width)
        tallest, widest = (
            int((end - start).max()) if len(windows) else 0 for start, end in ((top, bottom), (left, right))
        )
        self.tables, columns = _tables(features, tallest, widest)
        self.rows = _corners(top, bottom, columns * count * height * width, width)
        self.columns = _corners(left, right, count * height * width, 1)
        self.image = windows[:, 0] * height * width
        self.empty = ((bottom <= top)[:, :, None] | (right <= left)[:, None, :]).flatten(1)
        self.outside = 0 if features.is_floating_point() else torch.iinfo(features.dtype).min

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> Tensor:
        """Returns (len(indices), C, S, S)."""
        pooled = self.tables.new_empty(len(indices), self.channels, self.size, self.size)
        for part, out in zip(torch.split(indices, AT_ONCE), torch.split(pooled, AT_ONCE), strict=True):
            out.flatten(2).copy_(self._cells(part).transpose(1, 2))
        return pooled

    def _cells(self, part: Tensor) -> Tensor:
        """Returns (len(part), S x S, C)."""
        cells = None
        for row in self.rows:
            for column in self.columns:
                places = (self.image[part, None, None] + row[part, :, None] + column[part, None, :]).flatten()
                maxima = self.tables.index_select(0, places)
                cells = maxima if cells is None else torch.maximum(cells, maxima, out=cells)
        assert cells is not None
        cells = cells.view(len(part), self.size**2, self.channels)
        empty = self.empty[part]
        if empty.any():
            cells[empty] = self.outside
        return cells


def _bounds(first: Tensor, last: Tensor, size: int, limit: int) -> tuple[Tensor, Tensor]:
    """Returns the first row of each cell and the row after its last, (R, S), rounded in float32 as in torchvision."""
    step = (last - first + 1).clamp(min=1).float() / size
    cell = torch.arange(size, device=first.device).float()
    start = (cell * step[:, None]).floor().long() + first[:, None]
    end = ((cell + 1) * step[:, None]).ceil().long() + first[:, None]
    return start.clamp(0, limit), end.clamp(0, limit)


def _tables(features: Tensor, tallest: int, widest: int) -> tuple[Tensor, int]:
    """Computes the maxima over all windows of 2^i rows and 2^j columns that cells of these sizes need.

    Returns:
        (I x J x N x H x W, C), for the window that begins at a place of the map, and J. A window that reaches beyond
        the map is not used.
    """
    rows, columns = (max(side, 1).bit_length() for side in (tallest, widest))
    shape = (rows, columns, *features.permute(0, 2, 3, 1).shape)
    tables = features.new_empty(shape)
    tables[0, 0] = features.permute(0, 2, 3, 1)
    for j in range(1, columns):
        _wider(tables[0, j - 1], tables[0, j], 2, 1 << (j - 1))
    for i in range(1, rows):
        for j in range(columns):
            _wider(tables[i - 1, j], tables[i, j], 1, 1 << (i - 1))
    return tables.flatten(0, 4), columns


def _wider(half: Tensor, whole: Tensor, dim: int, by: int) -> None:
    """Computes `whole`, windows twice as long along `dim` as in `half`: the maximum of two at a distance of `by`."""
    length = half.shape[dim] - by
    if length > 0:
        torch.maximum(half.narrow(dim, 0, length), half.narrow(dim, by, length), out=whole.narrow(dim, 0, length))


def _corners(start: Tensor, end: Tensor, level: int, stride: int) -> tuple[Tensor, Tensor]:
    """Returns the places of two windows that cover [start, end); tables of twice the length follow after `level`."""
    length = (end - start).clamp(min=1)
    exponent = (length.float().log2() + 1e-4).floor().long()
    # For an empty cell at the end of the map, any window is fine.
    first = start.minimum((end - 1).clamp(min=0))
    return level * exponent + stride * first, level * exponent + stride * (first + length - (1 << exponent))
