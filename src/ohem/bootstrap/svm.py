"""Linear SVMs by hard negative mining: fit, drop the easy negatives, add the hard ones, until there are none.

Felzenszwalb et al., Object detection with discriminatively trained part-based models, 2010, section 4.4. The result is
the SVM of all negatives, although only a part of them is in memory. The settings are those of R-CNN.

Shapes: N: examples   D: features of an example   K: classes   n: examples that one SVM is fitted to
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ohem.bootstrap.config import BootstrapConfig
from ohem.extras import import_extra

# Features are scaled to the mean norm NORM. The bias is the weight of one more feature, always BIAS_FEATURE (R-CNN).
NORM, BIAS_FEATURE = 20.0, 10.0
# Maximum number of passes of the solver over the examples.
PASSES = 10_000
# Number of examples whose features are read at a time.
BLOCK = 8192

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LinearSVM:
    """A linear SVM, margin = features @ weights + bias, and values of its mining."""

    weights: Floats
    """(D,) weights of the original features, which are not scaled."""
    bias: float
    objective: float
    """Half the squared norm of the (scaled) weights and bias, plus the cost of the margin violations."""
    positives: int
    negatives: int
    """Number of negatives that it was fitted to in the last round."""
    rounds: int
    stopped: str
    """Why there was no further round: "no hard negatives", "limit" or "rounds"."""


class Round(NamedTuple):
    """Values of one round, over all classes that took part."""

    number: int
    classes: int
    """Number of classes that took part."""
    negatives: int
    """Number of negatives that the SVMs were fitted to."""
    dropped: int
    """Number of these that were dropped as easy."""
    violators: int
    """Number of negatives that violate the margin and were not in memory."""
    objective: float
    """Sum of the objectives of all classes."""


def linear_svc() -> Any:
    """Returns the class LinearSVC of scikit-learn; raises `InputError` if it is not installed."""
    return import_extra("sklearn.svm", "training support vector machines").LinearSVC


def mine_negatives(
    features: NDArray[Any],
    signs: NDArray[Any],
    config: BootstrapConfig,
    report: Callable[[Round], None] = lambda _: None,
) -> list[LinearSVM | None]:
    """Trains one SVM for each class, from all of its positives and as many negatives as necessary.

    Each round fits the SVM of every class to its positives and the negatives in memory. Then it drops negatives that
    score below `config.easy` from memory. Then it adds negatives that violate the margin, in one pass over all examples
    for all classes. A class is done when there is no negative to add, or when its memory is full of hard negatives.

    Args:
        features: (N, D) float; may be a memory-mapped file, of which `BLOCK` rows are read at a time.
        signs: (N, K): for each class 1 for its positives, -1 for its negatives, 0 for other examples.
        config: options.
        report: called after each round.

    Returns:
        K SVMs; None for a class without positives.
    """
    scale = NORM / (mean_norm(features) or NORM)
    miners = [_Miner(column, signs, config) for column in range(signs.shape[1])]
    active = [miner for miner in miners if len(miner.positives)]
    for number in range(1, config.rounds + 1):
        if not active:
            break
        dropped = sum(miner.fit(features, scale) for miner in active)
        _harvest(features, signs, active)
        objective = sum(miner.objective for miner in miners)
        negatives, violators = sum(m.fitted for m in active), sum(m.violators for m in active)
        report(Round(number, len(active), negatives, dropped, violators, objective))
        active = [miner for miner in active if miner.extend_memory()]
    return [miner.result() if len(miner.positives) else None for miner in miners]


class _Miner:
    """The SVM of one class, and its negatives in memory, as ascending rows of the features."""

    def __init__(self, column: int, signs: NDArray[Any], config: BootstrapConfig) -> None:
        self.column, self.config = column, config
        self.positives = np.flatnonzero(signs[:, column] > 0)
        negatives = np.flatnonzero(signs[:, column] < 0)
        rng = np.random.default_rng((config.seed, column))
        first = rng.choice(negatives, min(config.start, config.limit, len(negatives)), replace=False)
        self.memory: Ints = np.sort(first)
        self.weights: Floats = np.zeros(0)
        self.bias = self.objective = 0.0
        self.fitted = self.rounds = self.violators = 0
        self.harvest: Ints = np.zeros(0, np.int64)
        self.margins: Floats = np.zeros(0)
        self.stopped = "rounds"

    def fit(self, features: NDArray[Any], scale: float) -> int:
        """Fits the SVM, drops the negatives that are easy for it, and returns their number."""
        rows = np.concatenate([self.positives, self.memory])
        x = features[rows].astype(np.float64) * scale
        weights, self.bias, self.objective = fit_svm(x, len(self.positives), self.config)
        self.weights = weights * scale
        self.rounds, self.fitted = self.rounds + 1, len(self.memory)
        margins = x[len(self.positives) :] @ weights + self.bias
        self.memory = self.memory[margins >= self.config.easy]
        self.violators, self.harvest, self.margins = 0, np.zeros(0, np.int64), np.zeros(0)
        return self.fitted - len(self.memory)

    def offer(self, rows: Ints, margins: Floats) -> None:
        """Keeps the hardest negatives that are not in memory.

        Args:
            rows: rows of negatives that violate the margin.
            margins: their margins.
        """
        new = ~np.isin(rows, self.memory, assume_unique=True)
        self.violators += int(new.sum())
        self.harvest = np.concatenate([self.harvest, rows[new]])
        self.margins = np.concatenate([self.margins, margins[new]])
        room = min(self.config.per_round, self.config.limit - len(self.memory))
        hardest = np.argsort(-self.margins, kind="stable")[:room]
        self.harvest, self.margins = self.harvest[hardest], self.margins[hardest]

    def extend_memory(self) -> bool:
        """Adds the harvest to memory; returns False if there is none."""
        if not len(self.harvest):
            self.stopped = "limit" if self.violators else "no hard negatives"
        self.memory = np.sort(np.concatenate([self.memory, self.harvest]))
        return len(self.harvest) > 0

    def result(self) -> LinearSVM:
        counts = len(self.positives), self.fitted, self.rounds
        return LinearSVM(self.weights, self.bias, self.objective, *counts, self.stopped)


def fit_svm(x: Floats, positives: int, config: BootstrapConfig) -> tuple[Floats, float, float]:
    """Fits a linear SVM with L2 regularisation and hinge loss.

    Args:
        x: (n, D) features, the positives first.
        positives: number of positives.
        config: options.

    Returns:
        Weights (D,), bias and objective. Without negatives everything is positive: weights 0, bias 1.
    """
    if len(x) == positives:
        return np.zeros(x.shape[1]), 1.0, 0.5 / BIAS_FEATURE**2
    y = np.where(np.arange(len(x)) < positives, 1, -1)
    svm = linear_svc()(
        C=config.cost,
        loss="hinge",
        intercept_scaling=BIAS_FEATURE,
        class_weight={1: config.positive_weight},
        random_state=config.seed,
        max_iter=PASSES,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning of liblinear names no option of the user
        svm.fit(x, y)
    if svm.n_iter_ >= PASSES:
        warnings.warn(f"an SVM is not exact after {PASSES} passes over its examples: lower --cost", stacklevel=2)
    weights, bias = svm.coef_[0], float(svm.intercept_[0])
    violations = np.maximum(0, 1 - y * (x @ weights + bias)) * np.where(y > 0, config.positive_weight, 1)
    norm = weights @ weights + (bias / BIAS_FEATURE) ** 2
    return weights, bias, float(0.5 * norm + config.cost * violations.sum())


def _harvest(features: NDArray[Any], signs: NDArray[Any], miners: Sequence[_Miner]) -> None:
    """Offers the negatives that violate the margin to the miner of their class."""
    columns = [miner.column for miner in miners]
    weights = np.stack([miner.weights for miner in miners], axis=1).astype(np.float32)
    bias = np.array([miner.bias for miner in miners], np.float32)
    for start, block in _blocks(features):
        margins = block @ weights + bias
        hard = (margins > -1) & (signs[start : start + len(block), columns] < 0)
        for i, miner in enumerate(miners):
            rows = np.flatnonzero(hard[:, i])
            miner.offer(start + rows, margins[rows, i].astype(np.float64))


def mean_norm(features: NDArray[Any]) -> float:
    return sum(float(np.linalg.norm(block, axis=1).sum()) for _, block in _blocks(features)) / len(features)


def _blocks(features: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(features), BLOCK):
        yield start, features[start : start + BLOCK].astype(np.float32)
