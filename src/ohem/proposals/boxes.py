"""Checks and filters of proposals from any source."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 2
LIMIT = 2.0**24  # px; float32 is exact for whole numbers up to it
_ROUNDING_LOW, _ROUNDING_HIGH = (
    0.5,
    1.0,
)  # px outside the image; a whole pixel at the low side means boxes that are counted from 0


def distinct_and_large(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Removes repeated boxes and boxes with a side of 2 px or less, as the release does; keeps the order.

    Args:
        boxes: float32 (P, 4), [x1, y1, x2, y2], exclusive end.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    large = boxes[(sides > MIN_SIDE).all(axis=1)]
    _, first = np.unique(large, axis=0, return_index=True)
    return np.ascontiguousarray(large[np.sort(first)])


def fault_of_boxes(boxes: NDArray[np.floating[Any]], size: tuple[int, int] | None = None) -> str | None:
    """Returns what is wrong with `boxes`, in one clause about the first bad box; None if nothing is.

    Args:
        boxes: (P, 4), [x1, y1, x2, y2] in pixels, exclusive end. Each must be finite, have an area, and lie in the
            image, up to rounding.
        size: (height, width) of the image, if known.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        return f"{boxes.dtype} {list(boxes.shape)}, want numbers [P, 4]"
    height, width = size or (LIMIT, LIMIT)
    x1, y1, x2, y2 = boxes.T
    with_area = (x2 > x1) & (y2 > y1)  # False for NaN
    inside = (x1 >= -_ROUNDING_LOW) & (y1 >= -_ROUNDING_LOW)
    inside &= (x2 <= width + _ROUNDING_HIGH) & (y2 <= height + _ROUNDING_HIGH)
    good = with_area & inside
    if good.all():
        return None
    first = int(np.argmin(good))
    text = f"{int((~good).sum())} of {len(boxes)} are impossible, first number {first}, {_format_box(boxes[first])}"
    if not np.isfinite(boxes[first]).all():
        return f"{text}, which is not finite"
    if not with_area[first]:
        return f"{text}, which is inverted or has no area"
    return f"{text}, which is outside the image" + (f" of {width} x {height} pixels" if size else "")


def _format_box(box: NDArray[np.floating[Any]]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"
