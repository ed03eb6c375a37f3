"""Means, paired differences and their confidence intervals over a few seeds, and rank correlations. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from ohem.extras import import_extra
from ohem.io.numbers import format_number


@dataclass(frozen=True)
class Mean:
    """Mean of `n` values; `error` is the standard error of the mean, NaN for one value."""

    mean: float
    error: float
    n: int

    def __str__(self) -> str:
        text = format_number(self.mean)
        return text if math.isnan(self.error) else f"{text} ± {format_number(self.error)}"


@dataclass(frozen=True)
class Difference:
    """Mean difference between a method and the base, seed by seed, with its confidence interval.

    `error` is the standard error of the mean; the interval from `low` to `high` has the probability `confidence`.
    """

    mean: float
    error: float
    low: float
    high: float
    n: int
    confidence: float

    def verdict(self) -> str:
        """Returns "better", "worse" or "within noise", or says that one seed is not enough."""
        if self.n < 2:
            return "one seed: the noise is unknown"
        if self.low <= 0 <= self.high:
            return "within noise"
        return "better" if self.mean > 0 else "worse"


def mean_of(values: Sequence[float]) -> Mean:
    """Computes the mean and the standard error of at least one value."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Mean(fmean(values), error, len(values))


def paired(values: Sequence[float], base: Sequence[float], confidence: float = 0.95) -> Difference:
    """Computes the mean difference of pairs and its Student t interval; the interval of one pair is NaN.

    Args:
        values: values of a method, one for each seed.
        base: values of the base with the same seeds.
        confidence: probability of the interval.

    Raises:
        ValueError: unequal numbers of values, or none.
        InputError: SciPy is not installed.
    """
    difference = mean_of([value - other for value, other in zip(values, base, strict=True)])
    half = student(confidence, difference.n - 1) * difference.error if difference.n > 1 else math.nan
    mean = difference.mean
    return Difference(mean, difference.error, mean - half, mean + half, difference.n, confidence)


def student(confidence: float, degrees: int) -> float:
    """Returns the half-width, in standard errors, of the two-sided interval of Student's t.

    Args:
        confidence: probability of the interval.
        degrees: degrees of freedom.
    """
    return float(import_extra("scipy.stats", "comparing").t.ppf(0.5 + confidence / 2, degrees))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of `n` pairs.

    `p` is the probability that pairs without any relation have one at least as strong, estimated with 9,999
    permutations.
    """

    rho: float
    p: float
    n: int


PERMUTATIONS = 9_999


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> Correlation | None:
    """Computes Spearman's rank correlation; None if there are fewer than four pairs, or all values are equal.

    Raises:
        ValueError: unequal numbers of values.
        InputError: SciPy is not installed.
    """
    if len(values) != len(others):
        raise ValueError(f"values and others must be pairs, not {len(values)} and {len(others)}")
    if len(values) < 4 or len(set(values)) == 1 or len(set(others)) == 1:
        return None
    rankdata = import_extra("scipy.stats", "comparing").rankdata
    ranks, other_ranks = (_standardised(rankdata(numbers)) for numbers in (values, others))
    rho = float(ranks @ other_ranks)
    shuffled = np.random.default_rng(0).permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
    as_strong = np.count_nonzero(np.abs(shuffled @ other_ranks) >= abs(rho) - 1e-9)
    return Correlation(rho, (1 + int(as_strong)) / (1 + PERMUTATIONS), len(values))


def _standardised(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = ranks - ranks.mean()
    result: NDArray[np.float64] = centred / np.linalg.norm(centred)
    return result
