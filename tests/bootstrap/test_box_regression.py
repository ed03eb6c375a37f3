"""Ridge regression of boxes by class."""

import numpy as np
import pytest

from ohem.bootstrap.box_regression import fit_boxes, ridge
from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.svm import NORM


def test_weights_by_hand() -> None:
    """One feature: the weight is sum(x y) / (sum(x^2) + penalty) about the means, and the bias is free."""
    weights, bias = ridge(np.array([[2.0], [4.0]]), np.array([[5.0, 1.0], [7.0, 1.0]]), 2.0)
    np.testing.assert_allclose(weights, [[0.5, 0]])
    np.testing.assert_allclose(bias, [6 - 1.5, 1])


def test_a_small_penalty_gives_least_squares_and_a_large_one_the_mean() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(50, 3)), rng.normal(size=(3, 4))
    free, bias = ridge(x, x @ weights + 2, 1e-9)
    np.testing.assert_allclose(free, weights, atol=1e-6)
    np.testing.assert_allclose(bias, 2, atol=1e-6)
    tight, bias = ridge(x, x @ weights + 2, 1e12)
    np.testing.assert_allclose(tight, 0, atol=1e-8)
    np.testing.assert_allclose(bias, (x @ weights + 2).mean(axis=0), atol=1e-6)


FEATURES = np.array([[1.0, 0], [3, 0], [0, 2], [1, 1]], np.float32)
TARGETS = np.array([[0.1, 0, 0, 0], [0.3, 0, 0, 0], [9, 9, 9, 9], [0, 0, 0, 0]], np.float32)


def test_only_rois_near_an_object_of_the_class_count() -> None:
    """Rows 0 and 1 are of class 0, row 2 is too far from it, row 3 is of class 1; class 2 has none."""
    objects = np.array([[0.6, 0.5, 0], [0.9, 0, 0], [0.59, 0, 0], [0.7, 0.8, 0]], np.float32)
    first, second, third = fit_boxes(FEATURES, objects, TARGETS, BootstrapConfig(box_penalty=1e-6))
    assert first is not None
    assert second is not None
    assert (first.examples, second.examples, third) == (2, 1, None)
    np.testing.assert_allclose(FEATURES[:2] @ first.weights + first.bias, TARGETS[:2], atol=1e-5)
    np.testing.assert_allclose(second.weights, 0)
    np.testing.assert_allclose(second.bias, 0)


@pytest.mark.parametrize("size", [1.0, 64.0])
def test_the_size_of_features_does_not_matter(size: float) -> None:
    """The penalty is for features of the mean norm of those of the SVMs."""
    objects = np.array([[0.9], [0.9], [0.9], [0.9]], np.float32)
    (fitted,) = fit_boxes(FEATURES * size, objects, TARGETS, BootstrapConfig())
    scale = NORM / np.linalg.norm(FEATURES, axis=1).mean()
    weights, bias = ridge(FEATURES.astype(float) * scale, TARGETS.astype(float), 1000.0)
    assert fitted is not None
    np.testing.assert_allclose(fitted.weights * size, weights * scale, rtol=1e-5)
    np.testing.assert_allclose(fitted.bias, bias, rtol=1e-5)
