"""The options of `ohem bootstrap`, as a frozen dataclass whose fields are options of the command line.

Imports nothing heavy: `ohem --help` must answer at once.
"""

from dataclasses import dataclass
from typing import Literal

from ohem.errors import InputError


@dataclass(frozen=True)
class BootstrapConfig:
    """How the SVMs are trained; the values are R-CNN's where it has such a thing."""

    cost: float = 0.001
    """C, the cost of a margin violation, where features have a mean norm of 20."""
    positive_weight: float = 2.0
    """Cost of a violation by a positive, in units of `cost`."""
    positive_iou: float = 1.0
    """RoIs of at least this IoU with an object of a class are its positives; 1: the objects alone."""
    negative_iou: float = 0.3
    """RoIs below this IoU with every object of a class are its negatives."""
    start: int = 5000
    """Negatives of a class drawn at random to start from."""
    per_round: int = 2000
    """Most negatives that a class gets in a round, hardest first."""
    easy: float = -1.2
    """Negatives that score below it are dropped; the margin is at -1."""
    limit: int = 20_000
    """Most negatives of a class in memory; mining stops when so many are hard."""
    rounds: int = 30
    """Most rounds of fitting, dropping and harvesting."""
    precision: Literal["float16", "float32"] = "float16"
    """Of the cached features."""
    seed: int = 0
    """Of the negatives at the start, and of the solver."""

    def check(self) -> None:
        """Raises InputError where an option has a value that nothing can be done with."""
        for name in ("start", "per_round", "limit", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} mines nothing: give 1 or more")
        for name in ("cost", "positive_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} is no cost: give more than 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is no seed: give a whole number from 0 to {2**32 - 1}")
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise InputError(
                f"--negative-iou {self.negative_iou} and --positive-iou {self.positive_iou} do not tell negatives from "
                "positives: give 0 < negative-iou <= positive-iou <= 1"
            )
        if not self.easy < -1:
            raise InputError(f"--easy {self.easy} drops what violates the margin: give less than -1")
