"""Proposals of the original release: `.mat` files of selective search, edge boxes or MCG, as for Fast R-CNN."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.proposals.boxes import distinct_and_large, fault_of_boxes
from ohem.proposals.matfile import HDF5File, read_variables


def read_mat(path: Path) -> dict[str, NDArray[np.float32]]:
    """Reads a file with cell arrays `images`, the ids, and `boxes`, [y1, x1, y2, x2], 1-based and inclusive.

    Returns:
        Image id -> float32 (P, 4), [x1, y1, x2, y2], exclusive end, distinct, both sides above 2 px, in file order.

    Raises:
        InputError: the file is damaged, of MATLAB's v7.3 (HDF5) or has other content, boxes are not finite, have no
            area or begin before 1, or an id has two sets of boxes.
    """
    content = _load(path)
    absent = [name for name in ("boxes", "images") if name not in content]
    if absent:
        raise InputError(f"{path}: no variable {' nor '.join(absent)}: proposals need the cells `boxes` and `images`")
    boxes, images = (_cells(content[name], f"{path}: {name}") for name in ("boxes", "images"))
    if len(boxes) != len(images):
        raise InputError(f"{path}: {len(boxes)} cells of boxes for {len(images)} images: write the file again")
    boxes_of_file: dict[str, NDArray[np.float32]] = {}
    for number, (cell, image) in enumerate(zip(boxes, images, strict=True), start=1):
        image_id = _text(image, f"{path}: cell {number} of images")
        ours = _convert(cell, f"{path}: boxes of {image_id}")
        if not np.array_equal(boxes_of_file.setdefault(image_id, ours), ours):
            raise InputError(f"{path}: two sets of boxes of {image_id}: remove one of them")
    return boxes_of_file


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_variables(path.read_bytes(), ("boxes", "images"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file: correct --proposals.files") from error
    except HDF5File as error:
        raise InputError(f"{path}: a v7.3 (HDF5) file: write it in MATLAB with save(..., '-v7')") from error
    except (OSError, ValueError, zlib.error, IndexError) as error:
        raise InputError(f"{path}: not a complete .mat file ({error}): download it again") from error


def _cells(value: Any, where: str) -> NDArray[Any]:
    """Returns the cells of an array, in one row. Ids of one length may also be the rows of a char array."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OU":
        raise InputError(f"{where}: not a cell array: write it in MATLAB as {{...}}")
    return value.ravel()


def _text(cell: Any, where: str) -> str:
    """Returns the text of a cell with a char array, perhaps in another cell."""
    values = np.asarray(cell).ravel()
    text = values[0] if values.size == 1 else None
    if isinstance(text, np.ndarray) and text.size == 1:
        text = text.ravel()[0]
    if not isinstance(text, str) or not text:
        raise InputError(f"{where}: not the id of an image: write it as text")
    return str(text)


def _convert(cell: Any, where: str) -> NDArray[np.float32]:
    boxes = np.asarray(cell)
    if boxes.size == 0:
        return np.empty((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise InputError(f"{where}: {boxes.dtype} {list(boxes.shape)}, want numbers [P, 4]: write the file again")
    # Some files have unsigned integers, so that the type is changed before subtracting. A 1-based inclusive end equals
    # a 0-based exclusive end.
    with np.errstate(all="ignore"):  # too large numbers become infinite, which is refused
        ours = boxes[:, [1, 0, 3, 2]].astype(np.float32) - np.array([1, 1, 0, 0], np.float32)
    fault = fault_of_boxes(ours)
    if fault:
        raise InputError(f"{where}: {fault}: write them as [y1, x1, y2, x2] in pixels, counted from 1")
    return distinct_and_large(ours)
