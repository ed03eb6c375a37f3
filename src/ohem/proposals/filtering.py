"""Which proposals are worth keeping: the filter every source of proposals goes through."""

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 2


def distinct_and_large(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Drop repeated boxes (the first stays, the order too) and boxes with a side of 2 px or less.

    boxes: float32 (P, 4), [x1, y1, x2, y2], exclusive end. The release does the same to its proposals.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    large = boxes[(sides > MIN_SIDE).all(axis=1)]
    _, first = np.unique(large, axis=0, return_index=True)
    return np.ascontiguousarray(large[np.sort(first)])
