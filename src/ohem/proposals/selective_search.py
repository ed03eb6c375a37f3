"""Selective search by OpenCV: the proposals of the paper's experiments, without MATLAB. It must not import torch."""

import ctypes
import threading
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.proposals.methods import opencv, search_reduced

Mode = Literal["fast", "quality"]

_libc_rand = threading.Lock()


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective search with the settings of `selective_search`: a method of proposals."""

    mode: Mode = "fast"
    seed: int = 0
    width: int = 0

    @property
    def name(self) -> str:
        """The method in the name of a proposal file."""
        return f"selective-search-{self.mode}"

    @property
    def title(self) -> str:
        """The method in messages."""
        return f"selective search ({self.mode})"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as a proposal file has them."""
        return {"method": "selective search", "mode": self.mode, "seed": self.seed, "width": self.width}

    def check(self) -> None:
        """Raises `InputError` unless the mode exists."""
        if self.mode not in get_args(Mode):
            raise InputError(f"selective search has no mode {self.mode!r}: use fast or quality")

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the proposals of an image, uint8 (H, W, 3) in BGR."""
        return selective_search(image, self.mode, self.seed, self.width)


FAST = SelectiveSearch()


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
    SelectiveSearch(mode).check()
    return search_reduced(image, width, lambda seen: _search(seen, mode, seed), "selective search")


def _search(image: NDArray[np.uint8], mode: Mode, seed: int) -> Any:
    """Returns the boxes of OpenCV, (P, 4) [x, y, width, height]."""
    search = opencv("selective search").ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    with _libc_rand:  # OpenCV orders the boxes by C's rand(), which all threads of a process share
        ctypes.CDLL(None).srand(ctypes.c_uint(seed + 1))  # glibc takes 0 for 1
        return search.process()
