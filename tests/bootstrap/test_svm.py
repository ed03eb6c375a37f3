"""Hard negative mining on arrays: it gives the SVM of all negatives, with few of them in memory."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ohem.bootstrap import svm
from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.svm import LinearSVM, Round, fit_svm, linear_svc, mine_negatives
from ohem.errors import InputError

EVERYTHING = BootstrapConfig(start=10**6, limit=10**6)
LITTLE = BootstrapConfig(cost=0.01, start=20, per_round=15, limit=10**6)


def clouds(positives: int = 30, negatives: int = 400, distance: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (N, 6) of two clouds, `distance` standard deviations from each other, and signs (N, 1)."""
    rng = np.random.default_rng(0)
    centre = np.array([distance / 2, 0, 0, 0, 0, 0]) + np.array([0, 1, 0, 0, 0, 0])
    rows = [rng.normal(centre, 1, (positives, 6)), rng.normal(centre - [distance, 0, 0, 0, 0, 0], 1, (negatives, 6))]
    return np.concatenate(rows).astype(np.float32), np.repeat([1, -1], [positives, negatives]).astype(np.int8)[:, None]


def mine(features: np.ndarray, signs: np.ndarray, config: BootstrapConfig) -> tuple[LinearSVM, list[Round]]:
    """Returns the SVM of the only class, and its rounds."""
    rounds: list[Round] = []
    (mined,) = mine_negatives(features, signs, config, rounds.append)
    assert mined is not None
    return mined, rounds


def margins(mined: LinearSVM, features: np.ndarray) -> np.ndarray:
    return features @ mined.weights + mined.bias


# One SVM, by hand


def test_svm_of_two_examples_calculated_by_hand() -> None:
    """Every example violates the margin, so it has its full cost: 2 * 0.001 and 0.001."""
    weights, bias, objective = fit_svm(np.array([[10.0], [-10.0]]), 1, BootstrapConfig())
    assert weights[0] == pytest.approx(0.001 * (2 * 10 + 10), abs=1e-5)
    assert bias == pytest.approx(10 * 0.001 * (2 * 10 - 10), abs=1e-4)
    # The margins are 0.4 and -0.2.
    assert objective == pytest.approx((0.03**2 + 0.01**2) / 2 + 0.001 * (2 * 0.6 + 0.8), abs=1e-6)


def test_high_cost_gives_the_widest_margin() -> None:
    """The margin is +1 at the nearest positive and -1 at the nearest negative, whatever the other examples are."""
    x = np.array([[10.0, 0], [12, 5], [-10, 0], [-30, 7]])
    weights, bias, objective = fit_svm(x, 2, BootstrapConfig(cost=100))
    np.testing.assert_allclose(x[[0, 2]] @ weights + bias, [1, -1], atol=1e-3)
    assert objective == pytest.approx(0.1**2 / 2, rel=1e-2)


def test_inexact_solution_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm, "PASSES", 1)
    features, signs = clouds()
    with pytest.warns(UserWarning, match="lower --cost"):
        mine(features, signs, replace(EVERYTHING, cost=1.0))


def test_missing_scikit_learn_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(InputError, match=r'pip install "ohem\[train\]"'):
        linear_svc()


# Fixed point


@pytest.mark.parametrize("distance", [1.0, 2.0, 6.0], ids=["overlapping", "near", "separable"])
@pytest.mark.parametrize("cost", [0.001, 0.02])
def test_mining_gives_the_svm_of_all_negatives(distance: float, cost: float) -> None:
    features, signs = clouds(distance=distance)
    whole, _ = mine(features, signs, replace(EVERYTHING, cost=cost))
    mined, rounds = mine(features, signs, replace(LITTLE, cost=cost))
    assert (whole.rounds, whole.negatives) == (1, 400)
    assert mined.stopped == whole.stopped == "no hard negatives"
    assert mined.rounds > 1
    assert mined.negatives < 400
    assert rounds[-1].violators == 0
    assert mined.objective == pytest.approx(whole.objective, rel=1e-4)
    np.testing.assert_allclose(margins(mined, features), margins(whole, features), atol=0.01)


def test_the_objective_never_falls() -> None:
    """Dropped negatives have no cost and added ones have some, so the rounds cannot repeat themselves."""
    features, signs = clouds(distance=1.5)
    _, rounds = mine(features, signs, LITTLE)
    objectives = [entry.objective for entry in rounds]
    assert len(objectives) > 3
    assert all(after >= before - 1e-6 for before, after in pairwise(objectives))


def test_all_negatives_in_memory_need_one_fit() -> None:
    features, signs = clouds()
    mined, rounds = mine(features, signs, EVERYTHING)
    scale = svm.NORM / np.linalg.norm(features, axis=1).mean()
    weights, bias, objective = fit_svm(features * np.float64(scale), 30, EVERYTHING)
    np.testing.assert_allclose(mined.weights, weights * scale, rtol=1e-4, atol=1e-6)
    assert mined.bias == pytest.approx(bias, abs=1e-4)
    assert rounds == [Round(1, 1, 400, rounds[0].dropped, 0, mined.objective)]
    assert mined.objective == pytest.approx(objective, rel=1e-4)


def test_the_size_of_features_does_not_matter() -> None:
    features, signs = clouds()
    mined, _ = mine(features, signs, LITTLE)
    large, _ = mine(features * 1024, signs, LITTLE)
    np.testing.assert_allclose(large.weights * 1024, mined.weights, rtol=1e-6)
    assert large.bias == pytest.approx(mined.bias)


@pytest.mark.parametrize("block", [1, 7])
def test_blocks_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, signs = clouds(negatives=100)
    expected, rounds = mine(features, signs, LITTLE)
    monkeypatch.setattr(svm, "BLOCK", block)
    mined, same_rounds = mine(features, signs, LITTLE)
    np.testing.assert_allclose(mined.weights, expected.weights, rtol=1e-3, atol=1e-6)
    assert [entry[:5] for entry in same_rounds] == [entry[:5] for entry in rounds]


def test_same_seed_gives_the_same_svm() -> None:
    features, signs = clouds()
    once, again = (mine(features, signs, LITTLE)[0] for _ in range(2))
    assert (once.weights == again.weights).all()
    assert (once.bias, once.rounds) == (again.bias, again.rounds)
    other, _ = mine(features, signs, replace(LITTLE, seed=1))
    assert (other.weights != once.weights).any()
    np.testing.assert_allclose(margins(other, features), margins(once, features), atol=0.01)


# Dropping


def test_easy_negatives_are_dropped_and_do_not_come_back() -> None:
    """One positive, one negative at the margin and seven easy ones; all are in memory from the start."""
    features = np.array([[2.0], [-2.0], *[[-10.0]] * 7], np.float32)
    signs = np.array([1, *[-1] * 8])[:, None]
    mined, rounds = mine(features, signs, BootstrapConfig(cost=100))
    assert [entry[:5] for entry in rounds] == [(1, 1, 8, 7, 0)]
    np.testing.assert_allclose(margins(mined, features)[:3], [1, -1, -5], atol=1e-2)


def test_at_most_per_round_negatives_are_added() -> None:
    """Two of 40 negatives are in memory at the start; at most 3 are added in a round."""
    features, signs = clouds(negatives=40, distance=0.0)
    _, rounds = mine(features, signs, replace(LITTLE, start=2, per_round=3))
    assert rounds[0].negatives == 2
    assert rounds[0].violators > 3
    for before, after in pairwise(rounds):
        assert after.negatives == before.negatives - before.dropped + min(3, before.violators)


# The limits


def test_full_memory_of_hard_negatives_ends_mining() -> None:
    features, signs = clouds(distance=0.0)  # no plane separates them: almost all are hard
    whole, _ = mine(features, signs, EVERYTHING)
    mined, rounds = mine(features, signs, replace(EVERYTHING, start=10, per_round=15, limit=30))
    assert (mined.stopped, mined.negatives) == ("limit", 30)
    assert max(entry.negatives for entry in rounds) == 30
    assert mined.objective < whole.objective


def test_memory_with_all_negatives_is_not_the_limit() -> None:
    """A very low cost gives margins near 0: every negative is hard, and memory has room for all of them."""
    features, signs = clouds()
    mined, (only,) = mine(features, signs, replace(EVERYTHING, cost=1e-7, limit=400))
    assert (only.negatives, only.dropped, only.violators) == (400, 0, 0)
    assert mined.stopped == "no hard negatives"


def test_number_of_rounds_ends_mining() -> None:
    features, signs = clouds()
    mined, rounds = mine(features, signs, replace(LITTLE, rounds=2))
    assert (mined.stopped, mined.rounds, len(rounds)) == ("rounds", 2, 2)
    assert rounds[-1].violators > 0
    assert mined.negatives == rounds[-1].negatives


# Unusual classes


def test_class_without_positives_has_no_svm_and_does_not_change_the_others() -> None:
    features, signs = clouds()
    alone, alone_rounds = mine(features, signs, LITTLE)
    rounds: list[Round] = []
    both = mine_negatives(features, np.concatenate([signs, -np.ones_like(signs)], axis=1), LITTLE, rounds.append)
    assert both[1] is None
    assert both[0] is not None
    assert (both[0].weights == alone.weights).all()
    assert rounds == alone_rounds


def test_no_class_with_positives_gives_no_svm() -> None:
    features, signs = clouds()
    assert mine_negatives(features, -np.abs(signs), LITTLE) == [None]


def test_without_negatives_everything_is_positive() -> None:
    features, signs = clouds()
    mined, rounds = mine(features, np.maximum(signs, 0), LITTLE)
    assert (margins(mined, features) == 1).all()
    assert (mined.positives, mined.negatives, mined.stopped) == (30, 0, "no hard negatives")
    assert len(rounds) == 1


def test_classes_are_mined_independently() -> None:
    features, signs = clouds()
    others = np.roll(signs, 200)
    pair = mine_negatives(features, np.concatenate([signs, others], axis=1), LITTLE)
    for column, mined in zip((signs, others), pair, strict=True):
        whole, _ = mine(features, column, replace(LITTLE, start=10**6))
        assert mined is not None
        np.testing.assert_allclose(margins(mined, features), margins(whole, features), atol=0.01)


def test_examples_that_are_neither_do_not_matter() -> None:
    features, signs = clouds()
    signs[100:200] = 0
    expected, rounds = mine(features, signs, LITTLE)
    features[100:200] *= -1
    mined, same_rounds = mine(features, signs, LITTLE)
    assert (mined.weights == expected.weights).all()
    assert rounds == same_rounds


def test_features_of_zero_give_weights_of_zero() -> None:
    _, signs = clouds()
    mined, _ = mine(np.zeros((len(signs), 6), np.float32), signs, LITTLE)
    assert not mined.weights.any()


def test_float16_gives_nearly_the_same_svm() -> None:
    features, signs = clouds()
    mined, _ = mine(features.astype(np.float16), signs, LITTLE)
    expected, _ = mine(features, signs, LITTLE)
    np.testing.assert_allclose(margins(mined, features), margins(expected, features), atol=0.01)
