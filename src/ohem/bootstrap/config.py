"""Options of `ohem bootstrap`: the fields of a frozen dataclass.

Imports nothing that takes long: `ohem --help` must answer at once.
"""

from dataclasses import dataclass
from typing import Literal

from ohem.errors import InputError


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

    def check(self) -> None:
        """Raises `InputError` if an option has a value that cannot be used."""
        for name in ("start", "per_round", "limit", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} mines nothing: give 1 or more")
        for name in ("cost", "positive_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is not a cost: give more than 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is not a seed: give a whole number from 0 to {2**32 - 1}")
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise InputError(
                f"--negative-iou {self.negative_iou} and --positive-iou {self.positive_iou} do not separate negatives "
                "from positives: give 0 < negative-iou <= positive-iou <= 1"
            )
        if not self.easy < -1:
            raise InputError(f"--easy {self.easy} drops negatives that violate the margin: give less than -1")
