"""Selective search by OpenCV: the proposals of the paper's experiments, without MATLAB. It must not import torch."""

import ctypes
import threading
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.proposals.boxes import distinct_and_large

Mode = Literal["fast", "quality"]

_libc_rand = threading.Lock()


def opencv() -> Any:
    """Returns the module cv2 with its contributed part; raises `InputError` where it is not installed."""
    cv2 = import_extra("cv2", "selective search")
    if not hasattr(cv2, "ximgproc"):
        raise InputError(
            "selective search needs cv2.ximgproc, which this OpenCV lacks: remove the other opencv-python packages, "
            'then pip install --force-reinstall "ohem[train]"'
        )
    return cv2


def check_mode(mode: str) -> None:
    """Raises `InputError` unless `mode` is a mode of selective search."""
    if mode not in get_args(Mode):
        raise InputError(f"selective search has no mode {mode!r}: use fast or quality")


def selective_search(
    image: NDArray[np.uint8], mode: Mode = "fast", seed: int = 0, width: int = 0
) -> NDArray[np.float32]:
    """Computes object proposals of one image, in the order of OpenCV. They depend only on the arguments.

    Args:
        image: uint8 (H, W, 3) in **BGR**, as from cv2.imread: RGB gives other boxes.
        mode: "fast" or "quality".
        seed: seed of the order.
        width: highest width in pixels at which the image is searched; a wider one is reduced, as R-CNN does, and the
            boxes are in pixels of `image`. 0: none is reduced.

    Returns:
        float32 (P, 4), [x1, y1, x2, y2] in pixels, exclusive end, distinct, both sides above 2 px; P may be 0.

    Raises:
        InputError: another kind of array, an unknown mode, or OpenCV without ximgproc.
    """
    check_mode(mode)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"selective search takes uint8 [H, W, 3] images, not {image.dtype} {list(image.shape)}")
    cv2 = opencv()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    seen = image if not 0 < width < image.shape[1] else _reduced(cv2, image, width)
    search.setBaseImage(seen)
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    with _libc_rand:  # OpenCV orders the boxes by C's rand(), which all threads of a process share
        ctypes.CDLL(None).srand(ctypes.c_uint(seed + 1))  # glibc takes 0 for 1
        boxes = np.asarray(search.process(), dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # x, y, w, h -> exclusive corners
    boxes = distinct_and_large(boxes)
    if seen is not image:
        whole = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        boxes = np.minimum(boxes * (whole / np.array([seen.shape[1], seen.shape[0]] * 2, np.float32)), whole)
    return boxes


def _reduced(cv2: Any, image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    reduced: NDArray[np.uint8] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return reduced
