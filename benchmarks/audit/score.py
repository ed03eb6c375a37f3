"""Figures of a ranking of suspects against the planted errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.audit.plant import KINDS, Planted, flags


def average_precision(hits: Sequence[bool], total: int) -> float:
    """Returns the mean precision at the rank of each error, 0 for errors that are not ranked."""
    right = np.asarray(hits, bool)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(precision[right].sum() / total) if total else float("nan")


def precision_in_first(hits: Sequence[bool], count: int) -> float:
    """Returns the share of errors among the first `count` suspects."""
    return float(np.asarray(hits[:count], bool).sum() / count)


def figures(suspects: Sequence[Any], planted: Sequence[Planted], first: int = 50) -> dict[str, float]:
    """Returns the precision in the first suspects, and the average precision for all errors and for each kind alone.

    For one kind, suspects that point at errors of other kinds are left out of the ranking.
    """
    pointed = flags(suspects, planted)
    result = {f"precision in the first {first}": precision_in_first([error is not None for error in pointed], first)}
    result["all"] = average_precision([error is not None for error in pointed], len(planted))
    for kind in dict.fromkeys((*KINDS, *(error.kind for error in planted))):
        total = sum(error.kind == kind for error in planted)
        hits = [error is not None for error in pointed if error is None or error.kind == kind]
        if total:
            result[kind] = average_precision(hits, total)
    return result


def calibration_error(scores: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Returns the mean difference between score and share of errors over equally wide bins, weighted by their size."""
    chance, hit = np.asarray(scores), np.asarray(right, float)
    bin_of = np.minimum((chance * bins).astype(int), bins - 1)
    gaps = [
        abs(chance[bin_of == b].mean() - hit[bin_of == b].mean()) * (bin_of == b).sum()
        for b in range(bins)
        if (bin_of == b).any()
    ]
    return float(sum(gaps) / max(len(chance), 1))
