"""Hard negative mining on arrays: it finds the SVM of all negatives, with few of them in memory."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ohem.errors import InputError
from ohem.experiments.bootstrap import svm
from ohem.experiments.bootstrap.config import BootstrapConfig
from ohem.experiments.bootstrap.svm import LinearSVM, Round, fit_svm, linear_svc, mine_negatives

EVERYTHING = BootstrapConfig(start=10**6, limit=10**6)
LITTLE = BootstrapConfig(cost=0.01, start=20, per_round=15, limit=10**6)


def clouds(positives: int = 30, negatives: int = 400, apart: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 6) of two clouds whose centres are `apart` standard deviations from each other, and signs (N, 1)."""
    rng = np.random.default_rng(0)
    centre = np.array([apart / 2, 0, 0, 0, 0, 0]) + np.array([0, 1, 0, 0, 0, 0])
    rows = [rng.normal(centre, 1, (positives, 6)), rng.normal(centre - [apart, 0, 0, 0, 0, 0], 1, (negatives, 6))]
    return np.concatenate(rows).astype(np.float32), np.repeat([1, -1], [positives, negatives]).astype(np.int8)[:, None]


def mine(features: np.ndarray, signs: np.ndarray, config: BootstrapConfig) -> tuple[LinearSVM, list[Round]]:
    """The SVM of the only class, and its rounds."""
    rounds: list[Round] = []
    (found,) = mine_negatives(features, signs, config, rounds.append)
    assert found is not None
    return found, rounds


def margins(found: LinearSVM, features: np.ndarray) -> np.ndarray:
    return features @ found.weights + found.bias


# --------------------------------------------------------------------------------------------------- one SVM, by hand


def test_an_svm_that_can_be_counted() -> None:
    """Every example violates the margin, so each pulls with all of its cost: 2 * 0.001 and 0.001."""
    weights, bias, objective = fit_svm(np.array([[10.0], [-10.0]]), 1, BootstrapConfig())
    assert weights[0] == pytest.approx(0.001 * (2 * 10 + 10), abs=1e-5)
    assert bias == pytest.approx(10 * 0.001 * (2 * 10 - 10), abs=1e-4)
    # Margins 0.4 and -0.2.
    assert objective == pytest.approx((0.03**2 + 0.01**2) / 2 + 0.001 * (2 * 0.6 + 0.8), abs=1e-6)


def test_the_widest_margin() -> None:
    """Where violations cost much: +1 at the positive, -1 at the negative, whatever lies behind them."""
    x = np.array([[10.0, 0], [12, 5], [-10, 0], [-30, 7]])
    weights, bias, objective = fit_svm(x, 2, BootstrapConfig(cost=100))
    np.testing.assert_allclose(x[[0, 2]] @ weights + bias, [1, -1], atol=1e-3)
    assert objective == pytest.approx(0.1**2 / 2, rel=1e-2)


def test_a_solver_that_gives_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm, "PASSES", 1)
    features, signs = clouds()
    with pytest.warns(UserWarning, match="lower --cost"):
        mine(features, signs, replace(EVERYTHING, cost=1.0))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(InputError, match=r'pip install "ohem\[experiments\]"'):
        linear_svc()


# --------------------------------------------------------------------------------------------------------- fixed point


@pytest.mark.parametrize("apart", [1.0, 2.0, 6.0], ids=["overlapping", "near", "separable"])
@pytest.mark.parametrize("cost", [0.001, 0.02])
def test_mining_finds_the_svm_of_all_negatives(apart: float, cost: float) -> None:
    features, signs = clouds(apart=apart)
    whole, _ = mine(features, signs, replace(EVERYTHING, cost=cost))
    found, rounds = mine(features, signs, replace(LITTLE, cost=cost))
    assert (whole.rounds, whole.negatives) == (1, 400)
    assert found.stopped == whole.stopped == "no hard negatives"
    assert found.rounds > 1
    assert found.negatives < 400
    assert rounds[-1].violators == 0
    assert found.objective == pytest.approx(whole.objective, rel=1e-4)
    np.testing.assert_allclose(margins(found, features), margins(whole, features), atol=0.01)


def test_the_objective_never_falls() -> None:
    """What was dropped cost nothing, what was harvested costs something: the alternation cannot go in circles."""
    features, signs = clouds(apart=1.5)
    _, rounds = mine(features, signs, LITTLE)
    objectives = [each.objective for each in rounds]
    assert len(objectives) > 3
    assert all(after >= before - 1e-6 for before, after in pairwise(objectives))


def test_all_negatives_from_the_start_is_one_fit() -> None:
    features, signs = clouds()
    found, rounds = mine(features, signs, EVERYTHING)
    scale = svm.NORM / np.linalg.norm(features, axis=1).mean()
    weights, bias, objective = fit_svm(features * np.float64(scale), 30, EVERYTHING)
    np.testing.assert_allclose(found.weights, weights * scale, rtol=1e-4, atol=1e-6)
    assert found.bias == pytest.approx(bias, abs=1e-4)
    assert rounds == [Round(1, 1, 400, rounds[0].dropped, 0, found.objective)]
    assert found.objective == pytest.approx(objective, rel=1e-4)


def test_the_size_of_features_does_not_matter() -> None:
    features, signs = clouds()
    found, _ = mine(features, signs, LITTLE)
    large, _ = mine(features * 1024, signs, LITTLE)
    np.testing.assert_allclose(large.weights * 1024, found.weights, rtol=1e-6)
    assert large.bias == pytest.approx(found.bias)


@pytest.mark.parametrize("block", [1, 7])
def test_blocks_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, signs = clouds(negatives=100)
    expected, rounds = mine(features, signs, LITTLE)
    monkeypatch.setattr(svm, "BLOCK", block)
    found, same_rounds = mine(features, signs, LITTLE)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-3, atol=1e-6)
    assert [each[:5] for each in same_rounds] == [each[:5] for each in rounds]


def test_a_seed_decides_everything() -> None:
    features, signs = clouds()
    once, again = (mine(features, signs, LITTLE)[0] for _ in range(2))
    assert (once.weights == again.weights).all()
    assert (once.bias, once.rounds) == (again.bias, again.rounds)
    other, _ = mine(features, signs, replace(LITTLE, seed=1))
    assert (other.weights != once.weights).any()
    np.testing.assert_allclose(margins(other, features), margins(once, features), atol=0.01)


# ------------------------------------------------------------------------------------------------------------ dropping


def test_easy_negatives_are_dropped_and_do_not_come_back() -> None:
    """One positive, one negative at the margin, seven far behind it; all are in memory from the start."""
    features = np.array([[2.0], [-2.0], *[[-10.0]] * 7], np.float32)
    signs = np.array([1, *[-1] * 8])[:, None]
    found, rounds = mine(features, signs, BootstrapConfig(cost=100))
    assert [each[:5] for each in rounds] == [(1, 1, 8, 7, 0)]
    np.testing.assert_allclose(margins(found, features)[:3], [1, -1, -5], atol=1e-2)


def test_the_hardest_are_harvested_first() -> None:
    """Of 40 negatives two are in memory, which are dropped or kept as may be; at most 3 more come in a round."""
    features, signs = clouds(negatives=40, apart=0.0)
    _, rounds = mine(features, signs, replace(LITTLE, start=2, per_round=3))
    assert rounds[0].negatives == 2
    assert rounds[0].violators > 3
    for before, after in pairwise(rounds):
        assert after.negatives == before.negatives - before.dropped + min(3, before.violators)


# ---------------------------------------------------------------------------------------------------------- the limits


def test_a_full_memory_of_hard_negatives_ends_it() -> None:
    features, signs = clouds(apart=0.0)  # no plane tells them apart: almost all are hard
    whole, _ = mine(features, signs, EVERYTHING)
    found, rounds = mine(features, signs, replace(EVERYTHING, start=10, per_round=15, limit=30))
    assert (found.stopped, found.negatives) == ("limit", 30)
    assert max(each.negatives for each in rounds) == 30
    assert found.objective < whole.objective


def test_a_memory_that_is_full_of_all_negatives_is_no_limit() -> None:
    """Violations that cost next to nothing give margins near 0: every negative is hard, and has room."""
    features, signs = clouds()
    found, (only,) = mine(features, signs, replace(EVERYTHING, cost=1e-7, limit=400))
    assert (only.negatives, only.dropped, only.violators) == (400, 0, 0)
    assert found.stopped == "no hard negatives"


def test_the_number_of_rounds_ends_it() -> None:
    features, signs = clouds()
    found, rounds = mine(features, signs, replace(LITTLE, rounds=2))
    assert (found.stopped, found.rounds, len(rounds)) == ("rounds", 2, 2)
    assert rounds[-1].violators > 0
    assert found.negatives == rounds[-1].negatives


# ------------------------------------------------------------------------------------------------- unusual classes


def test_a_class_without_positives_has_no_svm_and_takes_nothing_from_the_others() -> None:
    features, signs = clouds()
    alone, alone_rounds = mine(features, signs, LITTLE)
    rounds: list[Round] = []
    both = mine_negatives(features, np.concatenate([signs, -np.ones_like(signs)], axis=1), LITTLE, rounds.append)
    assert both[1] is None
    assert both[0] is not None
    assert (both[0].weights == alone.weights).all()
    assert rounds == alone_rounds


def test_no_class_with_positives() -> None:
    features, signs = clouds()
    assert mine_negatives(features, -np.abs(signs), LITTLE) == [None]


def test_without_negatives_everything_is_positive() -> None:
    features, signs = clouds()
    found, rounds = mine(features, np.maximum(signs, 0), LITTLE)
    assert (margins(found, features) == 1).all()
    assert (found.positives, found.negatives, found.stopped) == (30, 0, "no hard negatives")
    assert len(rounds) == 1


def test_classes_are_mined_as_if_alone() -> None:
    features, signs = clouds()
    others = np.roll(signs, 200)
    pair = mine_negatives(features, np.concatenate([signs, others], axis=1), LITTLE)
    for column, found in zip((signs, others), pair, strict=True):
        whole, _ = mine(features, column, replace(LITTLE, start=10**6))
        assert found is not None
        np.testing.assert_allclose(margins(found, features), margins(whole, features), atol=0.01)


def test_what_is_neither_does_not_matter() -> None:
    features, signs = clouds()
    signs[100:200] = 0
    expected, rounds = mine(features, signs, LITTLE)
    features[100:200] *= -1
    found, same_rounds = mine(features, signs, LITTLE)
    assert (found.weights == expected.weights).all()
    assert rounds == same_rounds


def test_features_that_are_all_zero() -> None:
    _, signs = clouds()
    found, _ = mine(np.zeros((len(signs), 6), np.float32), signs, LITTLE)
    assert not found.weights.any()


def test_half_precision() -> None:
    features, signs = clouds()
    found, _ = mine(features.astype(np.float16), signs, LITTLE)
    expected, _ = mine(features, signs, LITTLE)
    np.testing.assert_allclose(margins(found, features), margins(expected, features), atol=0.01)
