"""Edge Boxes (Zitnick and Dollár, ECCV 2014) by OpenCV, on the edges of a structured forest. It must not import torch.

The forest (Dollár and Zitnick, ICCV 2013) is trained, and its file is large: the user names it.
"""

import gzip
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.io.digests import digest_of_file
from ohem.proposals.methods import opencv, search_reduced

MOST = 2000
"""Highest number of boxes of an image: about as many as selective search has. The default of OpenCV is 10,000."""
LEAST_SIDE = 15
"""Shortest side of a box in pixels, which follows from OpenCV's lowest area and highest ratio of the sides."""
TRY_SECONDS = 120
PURPOSE = "Edge Boxes"
REMEDY = "name OpenCV's model.yml.gz with --edge-model (--proposals.edge-model)"


@dataclass(frozen=True)
class EdgeBoxes:
    """Edge Boxes with their settings: a method of proposals. The other parameters are the defaults of OpenCV.

    Args:
        model: file of the forest, as cv2.ximgproc.createStructuredEdgeDetection reads it.
        digest: `digest_of_file` of the model.
        width: highest width in pixels at which an image is searched; a wider one is reduced, as for `selective_search`.
    """

    model: Path
    digest: str
    width: int = 0

    @classmethod
    def of(cls, model: Path, width: int = 0) -> "EdgeBoxes":
        """Makes the method with the forest of the file `model`; raises `InputError` if it cannot be read."""
        try:
            return cls(model.absolute(), digest_of_file(model), width)
        except OSError as error:
            raise InputError(f"{model}: the model of Edge Boxes cannot be read ({error.strerror}): {REMEDY}") from error

    @property
    def name(self) -> str:
        """The method in the name of a proposal file: another model has another file."""
        return f"edge-boxes-{self.digest}"

    @property
    def title(self) -> str:
        """The method in messages."""
        return PURPOSE

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as a proposal file has them."""
        return {"method": "edge boxes", "model": self.digest, "width": self.width}

    def check(self) -> None:
        """Raises `InputError` if OpenCV cannot use the model, or is not installed."""
        opencv(PURPOSE)
        _check_model(self.model, self.digest)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes the proposals of an image, highest score first.

        Args:
            image: uint8 (H, W, 3) in **BGR**, as from cv2.imread.

        Returns:
            float32 (P, 4), P up to `MOST`, [x1, y1, x2, y2] in pixels, exclusive end, distinct, both sides above 2 px.
            A box covers about 600 px² or more of the reduced image, since OpenCV refines boxes of 1000 px² or more.

        Raises:
            InputError: another kind of array, a model that OpenCV cannot use on it, or OpenCV is not installed.
        """
        return search_reduced(image, self.width, self._search, PURPOSE)

    def _search(self, image: NDArray[np.uint8]) -> Any:
        """Returns the boxes of OpenCV, (P, 4) [x, y, width, height]."""
        height, width = image.shape[:2]
        if min(height, width) < LEAST_SIDE:  # no box would fit, and OpenCV fails with patches of the usual size
            return []
        detector = _detector(self.model, self.digest)
        try:
            edges = detector.detectEdges(image[..., ::-1].astype(np.float32) / np.float32(255))
        except opencv(PURPOSE).error as error:
            raise InputError(
                f"{self.model} cannot be used on an image of {width} x {height} pixels: {REMEDY}"
            ) from error
        orientation = detector.computeOrientation(edges)
        boxes = opencv(PURPOSE).ximgproc.createEdgeBoxes()
        boxes.setMaxBoxes(MOST)
        return boxes.getBoundingBoxes(detector.edgesNms(edges, orientation), orientation)[0]


@lru_cache(maxsize=1)  # OpenCV needs seconds to read a forest
def _detector(model: Path, digest: str) -> Any:
    return opencv(PURPOSE).ximgproc.createStructuredEdgeDetection(str(model))


@lru_cache
def _check_model(model: Path, digest: str) -> None:
    """Raises `InputError` unless OpenCV can use the model. It tries in another process, which some files crash."""
    code = f"import sys; from {__name__} import try_model; try_model(sys.argv[1])"
    try:
        usable = subprocess.run(
            [sys.executable, "-c", code, str(model)], check=False, capture_output=True, timeout=TRY_SECONDS
        )
    except subprocess.TimeoutExpired:
        usable = None
    if usable is None or usable.returncode != 0:
        raise InputError(f"{model} is damaged, or no model of cv2.ximgproc.createStructuredEdgeDetection: {REMEDY}")


def try_model(model: str) -> None:
    """Reads the whole file `model`, and has OpenCV find edges in noise with it. It may end this process."""
    with Path(model).open("rb") as file:
        if file.read(2) == b"\x1f\x8b":  # of which OpenCV does not compare the checksum
            with gzip.open(model) as content:
                while content.read(1 << 20):
                    pass
    noise = np.random.default_rng(0).random((64, 96, 3), np.float32)
    opencv(PURPOSE).ximgproc.createStructuredEdgeDetection(model).detectEdges(noise)
