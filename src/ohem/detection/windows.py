"""Windows: the cells of a feature map that regions of RoIs round to.

R: RoIs   N: images   W: distinct windows   A window is (image, first column, first row, last column, last row), both
ends inclusive; that of a ring has the last four again for its inner rectangle.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ohem.detection.regions import Region
from ohem.rois import RoIs

# Cells from the corner of the feature map to which windows reach: no feature map is so large.
BITS = 13
FARTHEST = 2 ** (BITS - 1)


def windows_of(rois: RoIs, region: Region, stride: int) -> Tensor:
    """Returns the window of `region` of each RoI, float (R, 5), or (R, 9) of a ring.

    Args:
        rois: R RoIs, in pixels.
        region: region of their boxes.
        stride: pixels per cell.
    """
    rectangles = region.rectangles(rois.boxes)
    cells = torch.cat([cells_of(part, stride) for part in torch.split(rectangles, 4, dim=1)], dim=1)
    return torch.cat([rois.images[:, None].to(cells), cells], dim=1)


def cells_of(boxes: Tensor, stride: int) -> Tensor:
    """Returns the first column, first row, last column and last row of the cells of `boxes` (R, 4), float (R, 4)."""
    # RoIPool includes the last cell of a box, so it gets the last pixel, not the pixel after it.
    last_pixel = boxes - boxes.new_tensor([0, 0, 1, 1])
    return (last_pixel / stride + 0.5).floor().clamp(-FARTHEST, FARTHEST - 1)


def distinct(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows of `windows` (R, 5) or (R, 9), by image, and which of them each is, (R,) int64."""
    if windows.shape[1] == 5:
        return _distinct(windows)
    inner = torch.cat([windows[:, :1], windows[:, 5:]], dim=1)
    index, which = combined([_distinct(windows[:, :5])[1], _distinct(inner)[1]])
    rows = windows.new_empty(len(index), 9)
    rows[which] = windows
    return rows, which


def combined(which: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the distinct combinations of G numbers of each RoI, (W, G), ascending, and which each has, (R,).

    Args:
        which: G tensors (R,) int64 of numbers below R.
    """
    count = len(which[0])
    joint = which[0]
    for other in which[1:]:
        joint = torch.unique(joint * count + other, return_inverse=True)[1]
    index = joint.new_empty(int(joint.max()) + 1 if count else 0, len(which))
    index[joint] = torch.stack(list(which), dim=1)
    return index, joint


def own_cells(features: Tensor, sizes: Sequence[tuple[int, int]], stride: int) -> Tensor:
    """Sets the cells (N, C, H, W) to 0 that lie beyond the image itself, where a mini-batch is padded.

    A region may reach beyond the image, and must not depend on the other images of the mini-batch. An image has a cell
    for each `stride` pixels that begin.

    Args:
        features: feature map.
        sizes: N (height, width) of the images, in pixels.
        stride: pixels per cell.
    """
    pixels = torch.tensor(sizes, device=features.device)
    rows, columns = (stride * torch.arange(side, device=features.device) for side in features.shape[2:])
    inside = (rows < pixels[:, :1])[:, :, None] & (columns < pixels[:, 1:])[:, None, :]
    return torch.where(inside[:, None], features, 0)


def sizes_of(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Returns (height, width) of each of `images` (3, h, w)."""
    return [(image.shape[-2], image.shape[-1]) for image in images]


def counts_of(images: Tensor, count: int) -> list[int]:
    """Returns how many of `images` (R,), numbers of images in any order, are 0, 1, ..., `count` - 1."""
    numbers: list[int] = torch.bincount(images.long(), minlength=count).tolist()
    return numbers


def _distinct(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows of `windows` (R, 5) in ascending order, and which of them each window is, (R,) int64.

    A window is written as one whole number, of which the image has 11 bits: sorting rows takes many times as long.
    """
    places = torch.arange(4 * BITS, -1, -BITS, device=windows.device)
    lowest = -FARTHEST * (places < 4 * BITS).long()
    numbers, which = torch.unique(((windows.long() - lowest) << places).sum(dim=1), return_inverse=True)
    return ((numbers[:, None] >> places) % 2**BITS + lowest).to(windows), which


def grouped(parts: Iterable[Tensor], rows: int) -> Iterator[list[Tensor]]:
    """Yields lists of `parts` with at least `rows` rows together; the last one may have fewer."""
    group: list[Tensor] = []
    for part in parts:
        group.append(part)
        if sum(map(len, group)) >= rows:
            yield group
            group = []
    if group:
        yield group
