"""Proposals of the original release: `.mat` files of selective search, edge boxes or MCG, as Fast R-CNN's are."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.proposals.filtering import distinct_and_large

HDF5 = 2  # the major version of v7.3, which SciPy does not read


def read_mat(path: Path) -> dict[str, NDArray[np.float32]]:
    """Image id -> float32 (P, 4), [x1, y1, x2, y2], exclusive end, distinct, both sides above 2 px, in file order.

    The file holds two cell arrays of one length: `images`, the ids, and `boxes`, [y1, x1, y2, x2] each, 1-based and
    inclusive. Raises InputError where it does not, or is of MATLAB's v7.3 kind (HDF5).
    """
    content = _load(path)
    absent = [name for name in ("boxes", "images") if name not in content]
    if absent:
        raise InputError(f"{path}: no variable {' nor '.join(absent)}: proposals need the cells `boxes` and `images`")
    boxes, images = content["boxes"].ravel(), content["images"].ravel()
    if len(boxes) != len(images):
        raise InputError(f"{path}: {len(boxes)} cells of boxes for {len(images)} images: write the file again")
    ids = [_text(cell) for cell in images]
    return {image_id: _convert(cell, f"{path}: boxes of {image_id}") for image_id, cell in zip(ids, boxes, strict=True)}


def _load(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError, matfile_version
    except ImportError as error:
        raise InputError(f'{path}: reading .mat files needs SciPy: pip install "ohem[proposals]"') from error
    try:
        major, _ = matfile_version(path, appendmat=False)
        content: dict[str, Any] = {}
        if major != HDF5:
            content = loadmat(path, variable_names=["boxes", "images"], appendmat=False)
    except (OSError, MatReadError, ValueError, TypeError, IndexError, KeyError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole .mat file ({error}): fetch it again") from error
    if major == HDF5:
        raise InputError(f"{path}: a v7.3 (HDF5) file: write it in MATLAB with save(..., '-v7')")
    return content


def _text(cell: Any) -> str:
    """A cell of a char array, in one more array or not."""
    return str(np.asarray(cell).ravel()[0]) if np.size(cell) else ""


def _convert(cell: Any, where: str) -> NDArray[np.float32]:
    boxes = np.asarray(cell)
    if boxes.size == 0:
        return np.empty((0, 4), np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise InputError(f"{where}: {boxes.dtype} {list(boxes.shape)}, want numbers [P, 4]: write the file again")
    # Unsigned integers in some files, so change the type before subtracting. The end is 1-based and inclusive, which
    # is 0-based and exclusive.
    ours = boxes[:, [1, 0, 3, 2]].astype(np.float32) - np.array([1, 1, 0, 0], np.float32)
    return distinct_and_large(ours)
