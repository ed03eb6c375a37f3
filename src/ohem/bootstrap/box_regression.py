"""Box regression of each class by ridge regression on cached features (R-CNN, appendix C).

Shapes: N: examples   D: features of an example   K: classes
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.svm import NORM, mean_norm

Floats = NDArray[np.float64]


class BoxRegression(NamedTuple):
    """Linear functions of one class, box regression = features @ weights + bias."""

    weights: Floats
    """(D, 4)."""
    bias: Floats
    """(4,)."""
    examples: int
    """Number of RoIs that it was fitted to."""


def fit_boxes(
    features: NDArray[Any], objects: NDArray[Any], targets: NDArray[Any], config: BootstrapConfig
) -> list[BoxRegression | None]:
    """Fits the box regression of each class to the RoIs with an IoU of at least `config.box_iou` with its objects.

    A RoI belongs to the class of the object with which it has its highest IoU.

    Args:
        features: (N, D) float; may be a memory-mapped file.
        objects: (N, K) float, highest IoU with the objects of each class.
        targets: (N, 4) float, regression targets of that object, not normalised.
        config: options.

    Returns:
        K regressions; None for a class without a RoI.
    """
    scale = NORM / (mean_norm(features) or NORM)
    labels, near = objects.argmax(axis=1), objects.max(axis=1) >= config.box_iou
    rows = [np.flatnonzero(near & (labels == label)) for label in range(objects.shape[1])]
    return [
        _fit(features[part] * np.float64(scale), targets[part], scale, config) if len(part) else None for part in rows
    ]


def _fit(x: Floats, targets: NDArray[Any], scale: float, config: BootstrapConfig) -> BoxRegression:
    weights, bias = ridge(x, targets.astype(np.float64), config.box_penalty)
    return BoxRegression(weights * scale, bias, len(x))


def ridge(x: Floats, y: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Returns weights (D, M) and bias (M,) with the least sum of squared errors plus `penalty` times squared weights.

    Args:
        x: (n, D).
        y: (n, M).
        penalty: above 0. The bias is free.
    """
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - x_mean
    gram = centred.T @ centred + penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (y - y_mean))
    return weights, y_mean - x_mean @ weights
