"""What the methods of proposals have in common: OpenCV, the width of the images, unions. It must not import torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.extras import import_extra
from ohem.proposals.boxes import MIN_SIDE, distinct_and_large

Image = NDArray[np.uint8]
"""uint8 (H, W, 3) in **BGR**, as from cv2.imread."""
Boxes = NDArray[np.float32]
"""float32 (P, 4), [x1, y1, x2, y2] in pixels, exclusive end."""
Search = Callable[[Image], Boxes]


class Method(Protocol):
    """A method of proposals with its settings. It is sent to the processes that make the proposals."""

    @property
    def name(self) -> str:
        """The method in the name of a proposal file."""

    @property
    def title(self) -> str:
        """The method in messages."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the boxes of an image depend on, as a proposal file has it, among it `width`."""

    def check(self) -> None:
        """Raises `InputError` if the method cannot be used here."""

    def __call__(self, image: Image) -> Boxes:
        """Returns the proposals of an image, the same ones at each call."""


@dataclass(frozen=True)
class MethodUnion:
    """The union of the proposals of several methods.

    Args:
        methods: the methods.
        top: highest number of proposals of each method; the first ones are used.
    """

    methods: Sequence[Method]
    top: int

    def __call__(self, image: Image) -> Boxes:
        """Returns the proposals of an image."""
        return union_of([method(image)[: self.top] for method in self.methods])


def union_of(parts: Sequence[Boxes]) -> Boxes:
    """Returns the boxes of all `parts`, in order; of those that are equal in whole pixels, the first one.

    One part alone is returned as it is.
    """
    if len(parts) == 1:
        return parts[0]
    together = np.concatenate(parts)
    _, first = np.unique(np.rint(together), axis=0, return_index=True)
    return np.ascontiguousarray(together[np.sort(first)])


def opencv(purpose: str = "making proposals") -> Any:
    """Returns the module cv2 with its contributed part; raises `InputError` where it is not installed."""
    cv2 = import_extra("cv2", purpose)
    if not hasattr(cv2, "ximgproc"):
        raise InputError(
            f"{purpose} needs cv2.ximgproc, which this OpenCV lacks: remove the other opencv-python packages, "
            'then pip install --force-reinstall "ohem[train]"'
        )
    return cv2


def search_reduced(image: Image, width: int, search: Callable[[Image], Any], title: str) -> Boxes:
    """Computes boxes of an image at a width of at most `width`.

    Args:
        image: the image.
        width: highest width in pixels; a wider image is reduced, as R-CNN does. 0: none is reduced.
        search: image -> boxes (P, 4), [x, y, width, height] in its pixels.
        title: the method in messages.

    Returns:
        float32 (P, 4), [x1, y1, x2, y2] in pixels of `image`, exclusive end, distinct, both sides above 2 px of the
        reduced image; P may be 0.

    Raises:
        InputError: another kind of array.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"{title} takes uint8 [H, W, 3] images, not {image.dtype} {list(image.shape)}")
    seen = _reduced(image, width) if 0 < width < image.shape[1] else image
    if min(seen.shape[:2]) <= MIN_SIDE:
        return np.zeros((0, 4), np.float32)
    boxes = np.asarray(search(seen), dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # x, y, w, h -> exclusive corners
    boxes = distinct_and_large(boxes)
    if seen is not image:
        whole = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        boxes = np.minimum(boxes * (whole / np.array([seen.shape[1], seen.shape[0]] * 2, np.float32)), whole)
    return boxes


def _reduced(image: Image, width: int) -> Image:
    cv2 = opencv()
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    reduced: Image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return reduced
