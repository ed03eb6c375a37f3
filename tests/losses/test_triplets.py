"""Hard negatives of triplets: counted by hand, by brute force, and as pytorch-metric-learning chooses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem import hard_negatives, triplet_losses

EAST, NORTH, WEST, SOUTH = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]
DIAGONAL = [1.0, 1.0]


def features(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_losses_counted_by_hand() -> None:
    # Distances from east: north 1, west 2, north-east 1 - cos 45 degrees.
    losses = triplet_losses(features(EAST), features(NORTH), features(WEST, NORTH, DIAGONAL)[None], margin=0.5)
    assert losses[0].tolist() == pytest.approx([0, 0.5, 0.5 + math.sqrt(0.5)])


def test_the_length_of_features_does_not_matter() -> None:
    losses = [
        triplet_losses(a * features(EAST), b * features(NORTH), c * features(DIAGONAL)[None])
        for a, b, c in ((1, 1, 1), (3, 0.2, 100))
    ]
    torch.testing.assert_close(*losses)


def test_the_hardest_are_the_nearest() -> None:
    pool = features(WEST, DIAGONAL, NORTH, EAST)
    assert hard_negatives(features(EAST), features(WEST), pool, 3).tolist() == [[3, 1, 2]]
    assert hard_negatives(features(EAST), features(WEST), pool, 9).tolist() == [[3, 1, 2, 0]]
    assert hard_negatives(features(EAST), features(WEST), pool, 0).shape == (1, 0)


def test_of_negatives_without_loss_the_first_is_chosen() -> None:
    # The positive is the anchor itself: with a margin of 0.5 all negatives from 1 on are far enough.
    pool = features(WEST, SOUTH, DIAGONAL, NORTH)
    assert hard_negatives(features(EAST), features(EAST), pool, 4).tolist() == [[2, 0, 1, 3]]


def test_only_allowed_negatives_are_chosen() -> None:
    pool = features(EAST, DIAGONAL, NORTH, WEST)
    allowed = torch.tensor([[False, True, False, True], [False] * 4])
    anchors = features(EAST, NORTH)
    assert hard_negatives(anchors, anchors, pool, 3, allowed, margin=2.0).tolist() == [[1, 3, -1], [-1, -1, -1]]


def test_nan_is_never_chosen() -> None:
    pool = features([math.nan, 0.0], WEST)
    assert hard_negatives(features(EAST), features(EAST), pool, 2, margin=9.0).tolist() == [[1, -1]]


def test_gradients_reach_all_three_and_mining_leaves_no_trace() -> None:
    parts = [torch.randn(3, 5, requires_grad=True) for _ in range(3)]
    chosen = hard_negatives(*parts, 2)
    assert not chosen.requires_grad
    triplet_losses(parts[0], parts[1], parts[2][chosen], margin=9.0).sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in parts)


@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 9), st.integers(0, 999), st.sampled_from([0.0, 0.5, 3.0]))
def test_a_sorted_list_has_the_same(n: int, p: int, k: int, seed: int, margin: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    # Few directions, so that there are equal losses.
    anchors, positives, pool = (torch.randint(-1, 2, (rows, 2), generator=rng).float() for rows in (n, n, p))
    allowed = torch.rand(n, p, generator=rng) < 0.7
    losses = triplet_losses(anchors, positives, pool[None].expand(n, -1, -1), margin)
    for row, chosen in enumerate(hard_negatives(anchors, positives, pool, k, allowed, margin).tolist()):
        candidates = [i for i in range(p) if allowed[row, i]]
        expected = sorted(candidates, key=lambda i, row=row: -float(losses[row, i]))[:k]  # type: ignore[misc]
        assert [i for i in chosen if i >= 0] == expected
        assert len(chosen) == min(k, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_batch_hard_miner_chooses_the_same_negatives(dtype: torch.dtype) -> None:
    # They import scipy.stats, which takes a second in each process of the tests.
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.miners import BatchHardMiner

    rng = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(40, 8, generator=rng).to(dtype), torch.randint(0, 5, (40,), generator=rng)
    anchors, positives, negatives = BatchHardMiner(distance=CosineSimilarity())(embeddings.float(), labels)
    allowed = labels[anchors][:, None] != labels
    # The margin gives every negative a loss: without, the miner takes one of 0 where there is no other.
    chosen = hard_negatives(embeddings[anchors], embeddings[positives], embeddings, 1, allowed, margin=9.0)
    assert chosen.squeeze(1).tolist() == negatives.tolist()


def test_bad_input_is_refused() -> None:
    one = features(EAST)
    with pytest.raises(ValueError, match="pool"):
        hard_negatives(one, one, torch.zeros(3, 5), 1)
    with pytest.raises(ValueError, match="positives"):
        hard_negatives(one, features(EAST, WEST), one, 1)
    with pytest.raises(TypeError, match="allowed"):
        hard_negatives(one, one, one, 1, torch.ones(1, 1))
    with pytest.raises(ValueError, match="k must"):
        hard_negatives(one, one, one, -1)
    with pytest.raises(ValueError, match="margin"):
        hard_negatives(one, one, one, 1, margin=math.nan)
    with pytest.raises(TypeError, match="anchors"):
        triplet_losses(one.long(), one, one[None])
