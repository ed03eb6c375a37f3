"""Sliding windows: a dense grid of boxes in place of proposals, as in the detectors before them (paper, section 1).

Dalal and Triggs (2005) and DPM (Felzenszwalb et al., 2010) score windows of one shape at all places and scales. Here
they have three shapes. They are a function of the size of the image and of their number, and are never stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

SCALES = tuple(2 ** (-step / 2) for step in range(11))
"""Sides of square windows in units of the square root of the area of the image: 1 to 1/32, two in an octave."""
RATIOS = (1.0, 0.5, 2.0)
"""Width divided by height."""
LEAST_SIDE = 3
"""Shortest side of a window in pixels, if the image has it: selective search has none that is shorter either."""
WIDEST_STEP = 0.4
"""Highest distance of neighbouring windows in units of their side: a scale with a wider one is left out."""
Shape = tuple[int, int]
"""Width and height of windows, in pixels."""


class SlidingWindows(Mapping[str, NDArray[np.float32]]):
    """The windows of images by their names, made on access.

    Args:
        sizes: image name -> (height, width) in pixels.
        count: highest number of windows of an image.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], count: int) -> None:
        self.sizes, self.count = sizes, count

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return sliding_windows(self.sizes[name], self.count)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


@lru_cache(maxsize=16)  # many images of a data set have one size
def sliding_windows(size: tuple[int, int], count: int) -> NDArray[np.float32]:
    """Returns the windows of an image: the largest first, those of one shape row by row.

    The distance of neighbouring windows is the same share of their side for all shapes. There are as many scales,
    from the largest on, as `count` allows with `WIDEST_STEP`. Then windows are put as close as `count` allows. The
    outermost windows of a shape end at the border of the image.

    Args:
        size: (height, width) of the image in pixels.
        count: highest number of windows, at least 1.

    Returns:
        float32 (P, 4), [x1, y1, x2, y2] in pixels, exclusive end, distinct, inside the image. With sides of 16
        pixels or more and a `count` from 1000 on, P is at least 3/4 of it; of photographs and 2000 or more, at least
        95 %. The array is shared, and cannot be written.
    """
    shapes = _shapes(size, count)
    step = _smallest_step(shapes, size, count)
    windows = np.concatenate([_grid(shape, size, step) for shape in shapes]).astype(np.float32)
    windows.flags.writeable = False
    return windows


def _shapes(size: tuple[int, int], count: int) -> list[Shape]:
    """Returns the shapes of the windows, largest first, at most `count`."""
    height, width = size
    shapes: list[Shape] = []
    for scale in SCALES:
        side = scale * sqrt(height * width)
        rest = [(_cut(side * sqrt(ratio), width), _cut(side / sqrt(ratio), height)) for ratio in RATIOS]
        longer = list(dict.fromkeys([*shapes, *rest]))  # of those that are cut to the image, some may be equal
        if shapes and _total(longer, size, WIDEST_STEP) > count:
            break
        shapes = longer
    return shapes[:count]


def _cut(side: float, most: int) -> int:
    """Returns `side` in whole pixels, so that shapes are equal or differ by more than rounding."""
    return min(max(round(side), LEAST_SIDE), most)


def _smallest_step(shapes: Sequence[Shape], size: tuple[int, int], count: int) -> float:
    """Returns the smallest distance, in units of the side of a window, with which there are at most `count` windows."""
    low, high = 1 / (count + 1) / max(size), float(max(size))  # too many windows, one window of a shape
    for _ in range(50):
        middle = sqrt(low * high)
        if _total(shapes, size, middle) > count:
            low = middle
        else:
            high = middle
    return high


def _total(shapes: Sequence[Shape], size: tuple[int, int], step: float) -> int:
    return sum(_places(width, size[1], step) * _places(height, size[0], step) for width, height in shapes)


def _places(side: int, length: int, step: float) -> int:
    """Returns the number of windows of length `side` along `length`, at a distance of at least `step` sides."""
    return 1 + int((length - side) / (step * side))


def _grid(shape: Shape, size: tuple[int, int], step: float) -> NDArray[np.float64]:
    """Returns the windows (P, 4) of one shape."""
    x, y = (_positions(side, length, step) for side, length in zip(shape, size[::-1], strict=True))
    corners = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return np.concatenate([corners, corners + shape], axis=1)


def _positions(side: int, length: int, step: float) -> NDArray[np.float64]:
    """Returns the evenly spaced starts of the windows along `length`; one window alone is in the middle."""
    places, room = _places(side, length, step), length - side
    return np.linspace(0, room, places) if places > 1 else np.array([room / 2])
