"""RoIPool for both passes: without gradient bit for bit as torchvision's, which is slow on the CPU.

A cell of RoIPool is the maximum over a rectangle of the feature map. Four rectangles whose sides are powers of two
cover any rectangle. Their maxima are tables that are made once for an image: a cell of any size reads four values.

A ring is a window with a hole of zeros. What a cell has around the hole is at most four rectangles.

Shapes: R: RoIs   N: images   C, H, W: feature map   S: cells along a side of the pooled RoI
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import roi_pool

# Number of RoIs that are pooled at once: their values stay in the cache of the processor.
AT_ONCE = 16
# On a GPU, where each call has a fixed cost.
AT_ONCE_ON_GPU = 512


def roi_pools(features: Tensor, windows: Tensor, size: int, chunk: int) -> Iterator[Tensor]:
    """Yields RoIPool of `chunk` windows at a time, (chunk, C, S, S), by the fastest code; with gradient if enabled.

    Args:
        features, windows, size: as for `roi_max_pool`.
        chunk: number of windows.
    """
    ring = windows.shape[1] > 5
    if features.is_floating_point():
        # Under autocast they may be bfloat16: RoIPool has no CPU kernel for it, and it would round windows beyond cell
        # 256.
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        windows = windows.to(features)
    # torchvision's CPU kernel has one thread, and prepares a gradient that a read-only pass does not have.
    if (ring or features.device.type == "cpu") and not (torch.is_grad_enabled() and features.requires_grad):
        return roi_max_pools(features, windows, size, chunk)
    if ring:
        return (ring_max_pool(features, part, size) for part in torch.split(windows, chunk))
    return (roi_pool(features, part, (size, size)) for part in torch.split(windows, chunk))


def roi_max_pool(features: Tensor, windows: Tensor, size: int) -> Tensor:
    """Pools the maxima of `size` x `size` cells of each window; a cell outside the map is 0.

    Args:
        features: (N, C, H, W) floating, without NaN; or integers that stand for values from 0, their lowest, upwards.
        windows: (R, 5): image, first column, first row, last column, last row on the feature map, whole numbers, both
            ends inclusive. (R, 9) are rings: the other four are the same of an inner rectangle. The values strictly
            between its first and last cells count as 0, as in the code of MR-CNN.
        size: S.

    Returns:
        (R, C, S, S), equal to `torchvision.ops.roi_pool(features, windows, size)` bit for bit where there is no hole.
    """
    return next(roi_max_pools(features, windows, size, chunk=max(len(windows), 1)))


def roi_max_pools(features: Tensor, windows: Tensor, size: int, chunk: int) -> Iterator[Tensor]:
    """Yields the result of `roi_max_pool` for `chunk` windows at a time, which bounds the memory."""
    with torch.no_grad():
        pool = _Pool(features, windows.long(), size)
    for part in torch.split(torch.arange(len(windows), device=windows.device), chunk):
        yield pool(part)


def ring_max_pool(features: Tensor, windows: Tensor, size: int) -> Tensor:
    """Does as `roi_max_pool` for rings, with gradient; equal values of a cell pass it to the first, as torchvision's.

    The values are replaced by their ranks in their channel, so that the largest rank says where the largest value is.

    Args:
        features: (N, C, H, W) floating.
        windows: (R, 9), as for `roi_max_pool`.
        size: S.

    Returns:
        (R, C, S, S).
    """
    flat = features.permute(0, 2, 3, 1).flatten(0, 2)
    with torch.no_grad():
        places = flat.argsort(dim=0, descending=True, stable=True)
        last = torch.arange(len(flat) - 1, -1, -1, device=flat.device, dtype=torch.int32)
        ranks = torch.empty_like(places, dtype=torch.int32).scatter_(0, places, last[:, None].expand_as(places))
        count, channels, height, width = features.shape
        pool = _Pool(ranks.view(count, height, width, channels).permute(0, 3, 1, 2), windows.long(), size)
        everything = torch.arange(len(windows), device=flat.device)
        highest, hole = pool.around(everything), pool.holes[everything, :, None]
        nothing = highest < 0
        where = places.gather(0, (len(flat) - 1 - highest.clamp(min=0)).flatten(0, 1).long())
    pooled = flat.gather(0, where).view(highest.shape)
    pooled = torch.where(nothing, 0, torch.where(hole, pooled.clamp(min=0), pooled))
    return pooled.transpose(1, 2).reshape(len(windows), channels, size, size)


_Bounds = tuple[Tensor, Tensor]
"""First and end (after the last) of rows or columns of the cells of windows, (R, S) each."""
_Corners = tuple[Tensor, Tensor]


class _Rectangles(NamedTuple):
    """A rectangle of each cell of each window: where its maximum is in the tables, and whether it is empty."""

    rows: _Corners
    columns: _Corners
    empty: Tensor
    """(R, S x S) bool."""


class _Pool:
    """Tables of a feature map, and the places of the cells of `windows` (R, 5) or (R, 9) int64 in them."""

    def __init__(self, features: Tensor, windows: Tensor, size: int) -> None:
        count, self.channels, height, width = features.shape
        self.size = size
        rows = _bounds(windows[:, 2], windows[:, 4], size, height)
        columns = _bounds(windows[:, 1], windows[:, 3], size, width)
        self.holes = windows.new_zeros(len(windows), size**2, dtype=torch.bool)
        parts = [(rows, columns)]
        if windows.shape[1] == 9:
            self.holes, parts = _around(rows, columns, windows[:, 5:])
        tallest, widest = (
            max(int((end - start).max()) if len(windows) else 0 for start, end in bounds)
            for bounds in zip(*parts, strict=True)
        )
        self.tables, levels = _tables(features, tallest, widest)
        self.image = windows[:, 0] * height * width
        area = count * height * width
        self.parts = [
            _Rectangles(_corners(*r, levels * area, width), _corners(*c, area, 1), ~_cells(_filled(r), _filled(c)))
            for r, c in parts
        ]
        whole = torch.finfo if features.is_floating_point() else torch.iinfo
        self.lowest = whole(features.dtype).min
        self.outside = 0 if features.is_floating_point() else self.lowest
        self.at_once = AT_ONCE if features.device.type == "cpu" else AT_ONCE_ON_GPU

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> Tensor:
        """Returns (len(indices), C, S, S)."""
        pooled = self.tables.new_empty(len(indices), self.channels, self.size, self.size)
        for part, out in zip(torch.split(indices, self.at_once), torch.split(pooled, self.at_once), strict=True):
            cells = self.around(part)
            nothing, hole = self._nothing(part), self.holes[part]
            if nothing.any():
                cells[nothing] = self.outside
            if hole.any():
                cells = torch.where(hole[:, :, None], cells.clamp(min=self.outside), cells)
            out.flatten(2).copy_(cells.transpose(1, 2))
        return pooled

    def around(self, part: Tensor) -> Tensor:
        """Returns the maxima without the holes, (len(part), S x S, C); the lowest number where there is no value."""
        first, *others = self.parts
        cells = self._maxima(self._places(part, first))
        empty = first.empty[part].flatten()
        if empty.any():
            cells[empty] = self.lowest
        for other in others:
            filled = (~other.empty[part]).flatten().nonzero()[:, 0]
            maxima = self._maxima([places[filled] for places in self._places(part, other)])
            cells.index_copy_(0, filled, torch.maximum(cells[filled], maxima))
        return cells.view(len(part), self.size**2, self.channels)

    def _nothing(self, part: Tensor) -> Tensor:
        """Returns which cells have no value outside their hole, (len(part), S x S)."""
        return torch.stack([rectangles.empty[part] for rectangles in self.parts]).all(dim=0)

    def _places(self, part: Tensor, rectangles: _Rectangles) -> list[Tensor]:
        """Returns the places in the tables of four windows that cover the rectangle of each cell, (cells,) each."""
        image = self.image[part, None, None]
        return [
            (image + row[part, :, None] + column[part, None, :]).flatten()
            for row in rectangles.rows
            for column in rectangles.columns
        ]

    def _maxima(self, places: list[Tensor]) -> Tensor:
        """Returns the maxima over four windows of each cell, (cells, C)."""
        cells = self.tables.index_select(0, places[0])
        for others in places[1:]:
            torch.maximum(cells, self.tables.index_select(0, others), out=cells)
        return cells


def _around(rows: _Bounds, columns: _Bounds, inner: Tensor) -> tuple[Tensor, list[tuple[_Bounds, _Bounds]]]:
    """Returns which cells reach into the hole of their ring, (R, S x S), and four rectangles around the hole.

    Args:
        rows, columns: first and end of the rows and columns of the cells, (R, S) each.
        inner: (R, 4), inner rectangles of the rings, inclusive.
    """
    top, left, bottom, right = (inner[:, [i]] for i in (1, 0, 3, 2))
    exists = (bottom - top > 1) & (right - left > 1)
    # Without a hole, all rows are above it.
    above, below = (torch.where(exists, limit, rows[1].max() if len(inner) else 0) for limit in (top + 1, bottom))
    middle = rows[0].maximum(above), rows[1].minimum(below)
    within = columns[0].maximum(left + 1), columns[1].minimum(right)
    parts = [
        ((rows[0], rows[1].minimum(above)), columns),
        ((rows[0].maximum(below), rows[1]), columns),
        (middle, (columns[0], columns[1].minimum(left + 1))),
        (middle, (columns[0].maximum(right), columns[1])),
    ]
    return _cells(_filled(middle), _filled(within)), parts


def _filled(bounds: _Bounds) -> Tensor:
    return bounds[1] > bounds[0]


def _cells(rows: Tensor, columns: Tensor) -> Tensor:
    """Returns which cells are in the given rows (R, S) and columns (R, S), (R, S x S)."""
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def _bounds(first: Tensor, last: Tensor, size: int, limit: int) -> _Bounds:
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


def _corners(start: Tensor, end: Tensor, level: int, stride: int) -> _Corners:
    """Returns the places of two windows that cover [start, end); tables of twice the length follow after `level`."""
    length = (end - start).clamp(min=1)
    exponent = (length.float().log2() + 1e-4).floor().long()
    # For an empty cell at the end of the map, any window is fine.
    first = start.minimum((end - 1).clamp(min=0))
    return level * exponent + stride * first, level * exponent + stride * (first + length - (1 << exponent))
