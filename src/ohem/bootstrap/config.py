"""Options of `ohem bootstrap`: the fields of a frozen dataclass.

Imports nothing that takes long: `ohem --help` must answer at once.
"""

from dataclasses import dataclass, fields
from typing import Literal

from ohem.errors import InputError

OF_CROPS = ("crop_size", "crop_context", "crop_proposals", "box_regression", "box_iou", "box_penalty")
"""Options that are for crops alone."""


@dataclass(frozen=True)
class BootstrapConfig:
    """Options of the training of the SVMs. The defaults are those of R-CNN where it has the option."""

    cost: float = 0.001
    """Cost C of a margin violation, for features with a mean norm of 20."""
    positive_weight: float = 2.0
    """Cost of a margin violation by a positive, as a multiple of `cost`."""
    positive_iou: float = 1.0
    """Lowest IoU of a positive RoI with an object of its class; 1: only the objects themselves are positives."""
    negative_iou: float = 0.3
    """IoU with every object of a class below which a RoI is a negative of the class."""
    start: int = 5000
    """Number of random negatives of a class in the first round."""
    per_round: int = 2000
    """Maximum number of hard negatives that are added to a class in a round, hardest first."""
    easy: float = -1.2
    """Score below which a negative is dropped as easy; the margin is at -1."""
    limit: int = 20_000
    """Maximum number of negatives of a class in memory; mining stops when all of them are hard."""
    rounds: int = 30
    """Maximum number of rounds; a round fits the SVMs, drops easy negatives and adds hard ones."""
    precision: Literal["float16", "float32"] = "float16"
    """Number format of the cached features."""
    seed: int = 0
    """Seed of the random negatives and of the solver."""
    crops: bool = False
    """R-CNN: the features are those of the classification network on a crop of the image for each proposal, warped to a
    square, in place of those of the RoI head. The files are in RUN/crops/. The sizes of images in training and in
    tests do not matter, since crops are of the image in its own size."""
    crop_size: int = 224
    """With --crops: side of a crop, in pixels. R-CNN has 227; VGG16 and ResNet-50 were trained at 224."""
    crop_context: int = 16
    """With --crops: number of pixels of a crop on each side of the proposal."""
    crop_proposals: int = 2000
    """With --crops: highest number of proposals of an image, of each method, in training and in tests; the first ones
    are used. Sliding windows are all used."""
    box_regression: bool = True
    """With --crops: move the boxes by linear functions of the features, one for each class, from ridge regression.
    Without it, detections are proposals."""
    box_iou: float = 0.6
    """With --crops: lowest IoU with an object of a proposal that the box regression learns from."""
    box_penalty: float = 1000.0
    """With --crops: penalty of the squared norm of the weights of the box regression, for features with a mean norm of
    20."""

    def check(self) -> None:
        """Raises `InputError` if an option has a value that cannot be used."""
        for name in ("start", "per_round", "limit", "rounds", "crop_proposals"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} mines nothing: give 1 or more")
        for name in ("cost", "positive_weight", "box_penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is not a cost: give more than 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is not a seed: give a whole number from 0 to {2**32 - 1}")
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise InputError(
                f"--negative-iou {self.negative_iou} and --positive-iou {self.positive_iou} do not separate negatives "
                "from positives: give 0 < negative-iou <= positive-iou <= 1"
            )
        self._check_crops()
        if not self.easy < -1:
            raise InputError(f"--easy {self.easy} drops negatives that violate the margin: give less than -1")

    def _check_crops(self) -> None:
        if not self.crops:
            for option in fields(self):
                if option.name in OF_CROPS and getattr(self, option.name) != option.default:
                    raise InputError(f"--{option.name.replace('_', '-')} is for crops: add --crops, or leave it out")
            return
        if not 32 <= self.crop_size <= 4096:
            raise InputError(f"--crop-size {self.crop_size} is out of range: give 32 to 4096")
        if not 0 <= 2 * self.crop_context < self.crop_size:
            raise InputError(
                f"--crop-context {self.crop_context} leaves no pixel of a crop of {self.crop_size} to the proposal: "
                f"give 0 to {(self.crop_size - 1) // 2}"
            )
        if not 0.5 <= self.box_iou <= 1:
            raise InputError(f"--box-iou {self.box_iou} is out of range: give 0.5 to 1")
