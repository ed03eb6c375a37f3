"""What a few seeds say: means, paired differences and their confidence intervals. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ohem.errors import InputError


@dataclass(frozen=True)
class Mean:
    """Of `n` values; `error` is the standard error of the mean, NaN for one value."""

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isnan(self.error) else f"{self.mean:.1f} ± {self.error:.1f}"


@dataclass(frozen=True)
class Difference:
    """Of an arm and the first one, seed by seed, with the interval that holds the true mean with `confidence`."""

    mean: float
    error: float
    low: float
    high: float
    n: int
    confidence: float

    def verdict(self) -> str:
        """In words: better, worse, within noise, or that one seed cannot tell."""
        if self.n < 2:
            return "one seed: no telling what is noise"
        if self.low <= 0 <= self.high:
            return "within noise"
        return "better" if self.mean > 0 else "worse"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error of at least one value."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Mean(fmean(values), error, len(values))


def paired(arm: Sequence[float], base: Sequence[float], confidence: float = 0.95) -> Difference:
    """Mean difference of pairs and its Student t interval; the interval of one pair is NaN.

    Raises:
        ValueError: unequal numbers of values, or none.
        InputError: SciPy is not installed.
    """
    found = mean_of([a - b for a, b in zip(arm, base, strict=True)])
    reach = student(confidence, found.n - 1) * found.error if found.n > 1 else math.nan
    return Difference(found.mean, found.error, found.mean - reach, found.mean + reach, found.n, confidence)


def student(confidence: float, degrees: int) -> float:
    """Half-width, in standard errors, of the two-sided interval of Student's t."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise InputError('comparing needs SciPy: pip install "ohem[experiments]"') from error
    return float(t.ppf(0.5 + confidence / 2, degrees))
