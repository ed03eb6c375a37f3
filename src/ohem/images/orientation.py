"""The eight EXIF orientations: conversion of pixels and boxes between the stored and the upright image.

A size is `(height, width)` in pixels; boxes are `[N, 4]` as `[x1, y1, x2, y2]` in pixels, end exclusive.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]
Number = TypeVar("Number", bound=np.generic)

UPRIGHT = 1
ORIENTATIONS = range(1, 9)
# First the axes are exchanged, then x and y are mirrored.
_EXCHANGED = {5, 6, 7, 8}
_MIRRORED_X = {2, 3, 6, 7}
_MIRRORED_Y = {3, 4, 7, 8}


def turn_size(size: Size, orientation: int) -> Size:
    """Converts the size of the stored image to the size of the upright image, or back."""
    return size[::-1] if orientation in _EXCHANGED else size


def turn_pixels(pixels: npt.NDArray[Number], orientation: int) -> npt.NDArray[Number]:
    """Turns stored pixels `[H, W, ...]` upright; the result is a view."""
    if orientation in _EXCHANGED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in _MIRRORED_X:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in _MIRRORED_Y else pixels


def turn_boxes(boxes: npt.NDArray[Number], orientation: int, upright: Size) -> npt.NDArray[Number]:
    """Turns boxes of the stored image into boxes of the upright image, whose size is `upright`."""
    return _mirror(_exchange(boxes, orientation), orientation, upright)


def turn_boxes_back(boxes: npt.NDArray[Number], orientation: int, upright: Size) -> npt.NDArray[Number]:
    """Turns boxes of the upright image, whose size is `upright`, into boxes of the stored image."""
    return _exchange(_mirror(boxes, orientation, upright), orientation)


def _exchange(boxes: npt.NDArray[Number], orientation: int) -> npt.NDArray[Number]:
    return boxes[:, [1, 0, 3, 2]] if orientation in _EXCHANGED else boxes


def _mirror(boxes: npt.NDArray[Number], orientation: int, upright: Size) -> npt.NDArray[Number]:
    height, width = upright
    boxes = boxes.copy()
    if orientation in _MIRRORED_X:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if orientation in _MIRRORED_Y:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return boxes
