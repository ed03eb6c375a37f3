"""Linear SVMs by hard negative mining: fit, drop the easy negatives, harvest the hard ones, until there are none.

Felzenszwalb et al., Object detection with discriminatively trained part-based models, 2010, section 4.4: the SVM that
comes out is that of all negatives, of which only those at the margin were ever in memory. The settings are R-CNN's.

Shapes: N: examples   D: features of each   K: classes   n: examples that one SVM is fitted to
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ohem.errors import InputError
from ohem.experiments.bootstrap.config import BootstrapConfig

# Features are scaled to this mean norm, and the bias is learnt as the weight of one more feature of this value (R-CNN).
NORM, BIAS_FEATURE = 20.0, 10.0
# Of the solver over the examples.
PASSES = 10_000
# Examples whose features are read at once.
BLOCK = 8192

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LinearSVM:
    """margin = features @ weights + bias, and what became of its mining."""

    weights: Floats
    """(D,), for features as they are given, not scaled."""
    bias: float
    objective: float
    """Half the squared norm of the (scaled) weights and bias, and the cost of the margin violations."""
    positives: int
    negatives: int
    """That it was fitted to in the last round."""
    rounds: int
    stopped: str
    """Why there was no further round: no hard negatives, limit, or rounds."""


class Round(NamedTuple):
    """What happened in one round, over all classes that took part."""

    number: int
    classes: int
    """That took part."""
    negatives: int
    """That the SVMs were fitted to."""
    dropped: int
    """Of these, for being easy."""
    violators: int
    """Negatives beyond the margin that were not in memory."""
    objective: float
    """Sum over all classes."""


def linear_svc() -> Any:
    """scikit-learn's LinearSVC. Raises InputError where it is not installed."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise InputError(
            'support vector machines need scikit-learn, which is not installed: pip install "ohem[experiments]"'
        ) from error
    return LinearSVC


def mine_negatives(
    features: NDArray[Any],
    signs: NDArray[Any],
    config: BootstrapConfig,
    told: Callable[[Round], None] = lambda _: None,
) -> list[LinearSVM | None]:
    """One SVM for each class, from all of its positives and as many negatives as it takes.

    Each round fits the SVM of every class to its positives and the negatives in memory, drops from memory what scores
    below `config.easy`, and harvests what violates the margin among all negatives, in one pass for all classes. A class
    is done when there is nothing to harvest, or when its memory is full of hard negatives.

    Args:
        features: (N, D) float; may be a mapped file, of which `BLOCK` rows at a time are read, and those in memory.
        signs: (N, K): of each class 1 for its positives, -1 for its negatives, 0 for what is neither.
        config: options.
        told: is called after each round.

    Returns:
        K of them; None for a class without positives.
    """
    scale = NORM / (_mean_norm(features) or NORM)
    miners = [_Miner(column, signs, config) for column in range(signs.shape[1])]
    active = [miner for miner in miners if len(miner.positives)]
    for number in range(1, config.rounds + 1):
        if not active:
            break
        dropped = sum(miner.fit(features, scale) for miner in active)
        _harvest(features, signs, active)
        objective = sum(miner.objective for miner in miners)
        negatives, violators = sum(m.fitted for m in active), sum(m.found for m in active)
        told(Round(number, len(active), negatives, dropped, violators, objective))
        active = [miner for miner in active if miner.go_on()]
    return [miner.result() if len(miner.positives) else None for miner in miners]


class _Miner:
    """The SVM of one class, and the negatives that it has in memory: rows of the features, ascending."""

    def __init__(self, column: int, signs: NDArray[Any], config: BootstrapConfig) -> None:
        self.column, self.config = column, config
        self.positives = np.flatnonzero(signs[:, column] > 0)
        negatives = np.flatnonzero(signs[:, column] < 0)
        rng = np.random.default_rng((config.seed, column))
        first = rng.choice(negatives, min(config.start, config.limit, len(negatives)), replace=False)
        self.memory: Ints = np.sort(first)
        self.weights: Floats = np.zeros(0)
        self.bias = self.objective = 0.0
        self.fitted = self.rounds = self.found = 0
        self.harvest: Ints = np.zeros(0, np.int64)
        self.margins: Floats = np.zeros(0)
        self.stopped = "rounds"

    def fit(self, features: NDArray[Any], scale: float) -> int:
        """Fits the SVM, and drops the negatives that are easy for it: how many."""
        rows = np.concatenate([self.positives, self.memory])
        x = features[rows].astype(np.float64) * scale
        weights, self.bias, self.objective = fit_svm(x, len(self.positives), self.config)
        self.weights = weights * scale
        self.rounds, self.fitted = self.rounds + 1, len(self.memory)
        margins = x[len(self.positives) :] @ weights + self.bias
        self.memory = self.memory[margins >= self.config.easy]
        self.found, self.harvest, self.margins = 0, np.zeros(0, np.int64), np.zeros(0)
        return self.fitted - len(self.memory)

    def offer(self, rows: Ints, margins: Floats) -> None:
        """Negatives that violate the margin, of which the hardest are kept that are not in memory."""
        new = ~np.isin(rows, self.memory, assume_unique=True)
        self.found += int(new.sum())
        self.harvest = np.concatenate([self.harvest, rows[new]])
        self.margins = np.concatenate([self.margins, margins[new]])
        room = min(self.config.per_round, self.config.limit - len(self.memory))
        hardest = np.argsort(-self.margins, kind="stable")[:room]
        self.harvest, self.margins = self.harvest[hardest], self.margins[hardest]

    def go_on(self) -> bool:
        """Takes the harvest into memory; whether there is one."""
        if not len(self.harvest):
            self.stopped = "limit" if self.found else "no hard negatives"
        self.memory = np.sort(np.concatenate([self.memory, self.harvest]))
        return len(self.harvest) > 0

    def result(self) -> LinearSVM:
        counts = len(self.positives), self.fitted, self.rounds
        return LinearSVM(self.weights, self.bias, self.objective, *counts, self.stopped)


def fit_svm(x: Floats, positives: int, config: BootstrapConfig) -> tuple[Floats, float, float]:
    """The linear SVM (L2 regularisation, hinge loss) of which the first `positives` rows of `x` (n, D) are positive.

    Returns:
        weights (D,), bias and objective. Without negatives everything is positive: weights 0, bias 1.
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
        warnings.simplefilter("ignore")  # liblinear's names no option of ours
        svm.fit(x, y)
    if svm.n_iter_ >= PASSES:
        warnings.warn(f"an SVM is not exact after {PASSES} passes over its examples: lower --cost", stacklevel=2)
    weights, bias = svm.coef_[0], float(svm.intercept_[0])
    violations = np.maximum(0, 1 - y * (x @ weights + bias)) * np.where(y > 0, config.positive_weight, 1)
    norm = weights @ weights + (bias / BIAS_FEATURE) ** 2
    return weights, bias, float(0.5 * norm + config.cost * violations.sum())


def _harvest(features: NDArray[Any], signs: NDArray[Any], miners: Sequence[_Miner]) -> None:
    """Offers to each miner the negatives of its class that violate the margin."""
    columns = [miner.column for miner in miners]
    weights = np.stack([miner.weights for miner in miners], axis=1).astype(np.float32)
    bias = np.array([miner.bias for miner in miners], np.float32)
    for start, block in _blocks(features):
        margins = block @ weights + bias
        hard = (margins > -1) & (signs[start : start + len(block), columns] < 0)
        for i, miner in enumerate(miners):
            rows = np.flatnonzero(hard[:, i])
            miner.offer(start + rows, margins[rows, i].astype(np.float64))


def _mean_norm(features: NDArray[Any]) -> float:
    return sum(float(np.linalg.norm(block, axis=1).sum()) for _, block in _blocks(features)) / len(features)


def _blocks(features: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(features), BLOCK):
        yield start, features[start : start + BLOCK].astype(np.float32)
