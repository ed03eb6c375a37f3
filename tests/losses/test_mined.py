"""`OHEMLoss`: cases checked by hand, equality with the masked loss, and limits."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn import functional

from ohem import OHEMLoss


def given_losses(values: Tensor, _: Tensor) -> Tensor:
    """Returns its input: a criterion with given losses."""
    return values


NOTHING = torch.zeros(0)


def kept(loss: OHEMLoss, values: list[float]) -> float:
    return loss(torch.tensor(values), NOTHING).item()


@pytest.mark.parametrize(
    ("keep", "min_kept", "expected"),
    [
        (0.25, 1, 4.0),  # round(0.25 x 4) = 1
        (0.5, 1, 3.5),
        (0.5, 3, 3.0),
        (1.0, 1, 2.5),
        (0.0, 0, 0.0),
        (0.0, 2, 3.5),
        (0.0, 4, 2.5),
        (0.0, 99, 2.5),
    ],
)
def test_number_of_examples_kept(keep: float, min_kept: int, expected: float) -> None:
    loss = OHEMLoss(given_losses, keep, min_kept)
    assert kept(loss, [1.0, 4.0, 2.0, 3.0]) == pytest.approx(expected)


def test_classification_with_ignored_samples() -> None:
    """Uses losses of 0.31, 1.31 and 0.31, and an ignored one. Half of three, rounded, is the two hardest."""
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
    target = torch.tensor([0, 1, 1, -100])
    one, zero = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=0.5)
    assert loss(scores, target).item() == pytest.approx((zero + one) / 2)
    assert loss.mining == pytest.approx(
        {"examples": 3, "kept": 2, "loss_kept": (zero + one) / 2, "loss_all": (zero + 2 * one) / 3}
    )


def test_segmentation_of_a_mini_batch_and_per_image() -> None:
    values = torch.tensor([[[9.0, 8.0], [7.0, 6.0]], [[4.0, 3.0], [2.0, 1.0]]])
    assert OHEMLoss(given_losses, 0.5)(values, NOTHING).item() == pytest.approx(7.5)
    assert OHEMLoss(given_losses, 0.5, per_image=True)(values, NOTHING).item() == pytest.approx((9 + 8 + 4 + 3) / 4)


def test_ignore_index_of_the_criterion_or_the_argument() -> None:
    scores = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.full((1, 4, 4), 255)
    target[0, 0] = 1
    criterion = nn.CrossEntropyLoss(reduction="none", ignore_index=255)
    expected = nn.CrossEntropyLoss(ignore_index=255)(scores, target)
    assert OHEMLoss(criterion, keep=1.0)(scores, target).item() == pytest.approx(expected.item())
    by_hand = OHEMLoss(lambda s, t: criterion(s, t), keep=1.0, ignore_index=255)
    assert by_hand(scores, target).item() == pytest.approx(expected.item())


def test_ignore_index_of_float_targets_and_of_a_partial() -> None:
    losses, target = torch.tensor([[9.0, 1.0], [2.0, 3.0]]), torch.tensor([[255.0, 0.0], [1.0, 255.0]])
    assert OHEMLoss(lambda a, _: a, keep=1.0, ignore_index=255)(losses, target) == 1.5
    cross_entropy = partial(functional.cross_entropy, reduction="none", ignore_index=255)
    loss = OHEMLoss(cross_entropy, keep=0.5)
    loss(torch.zeros(4, 2), torch.tensor([0, 1, 255, 255]))
    assert (loss.mining["examples"], loss.mining["kept"]) == (2, 1)
    with pytest.raises(ValueError, match='reduction="none"'):
        OHEMLoss(partial(functional.cross_entropy, reduction="sum"))


def test_ignore_index_without_a_target_per_loss_is_refused() -> None:
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), ignore_index=255)
    with pytest.raises(
        ValueError, match=r"each loss of shape \(2,\), not a float32 tensor of shape \(2, 3\): say .* valid="
    ):
        loss(torch.zeros(2, 3), torch.full((2, 3), 1 / 3))
    assert OHEMLoss(nn.CrossEntropyLoss(reduction="none"))(torch.zeros(2, 3), torch.full((2, 3), 1 / 3)) > 0


@pytest.mark.parametrize("count", [0, 3])
def test_per_image_in_classification(count: int) -> None:
    """Checks that every sample is an image with a single loss, which is kept."""
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=0.1, per_image=True)
    loss(torch.zeros(count, 2), torch.zeros(count, dtype=torch.int64))
    assert loss.mining["kept"] == count


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, "cross_entropy"])
def test_invalid_criterion_is_refused(criterion: Any) -> None:
    with pytest.raises(TypeError, match="criterion must be a function or an object that can be called"):
        OHEMLoss(criterion)


def test_regression_ranks_coordinates_or_sums_of_the_criterion() -> None:
    predicted, wanted = torch.tensor([[3.0, 0.0], [2.0, 2.0]]), torch.zeros(2, 2)
    squared = nn.MSELoss(reduction="none")
    assert OHEMLoss(squared)(predicted, wanted).item() == 9.0
    assert OHEMLoss(lambda a, b: squared(a, b).sum(1))(predicted, wanted).item() == 9.0
    assert OHEMLoss(lambda a, b: (a - b).abs().sum(1))(predicted, wanted).item() == 4.0


def test_all_ignored_gives_zero_with_a_graph() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"))(scores, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_empty_input_has_a_gradient() -> None:
    for loss in (OHEMLoss(given_losses), OHEMLoss(given_losses, per_image=True)):
        values = torch.zeros(0, 3, requires_grad=True)
        loss(values, NOTHING).backward()
        assert values.grad is not None


@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(0, 5), st.booleans())
def test_gradient_is_that_of_the_masked_mean(seed: int, keep: float, min_kept: int, per_image: bool) -> None:
    """Checks that the kept examples have equal shares, and the others have no gradient."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.rand(3, 4, generator=rng, requires_grad=True)
    valid = torch.rand(3, 4, generator=rng) < 0.7
    loss = OHEMLoss(given_losses, keep, min_kept, per_image=per_image)
    loss(values, NOTHING, valid).backward()
    assert values.grad is not None
    groups = (
        list(zip(values.detach(), valid, strict=True)) if per_image else [(values.detach().flatten(), valid.flatten())]
    )
    hardest = []
    for losses, counted in groups:
        count = max(min_kept, round(keep * int(counted.sum())))
        hardest += sorted(losses[counted].tolist(), reverse=True)[:count]
    mask = torch.isin(values.detach(), torch.tensor(hardest))
    expected = mask / max(len(hardest), 1)
    torch.testing.assert_close(values.grad, expected)


def test_all_kept_is_the_plain_mean() -> None:
    rng = torch.Generator().manual_seed(0)
    scores, target = torch.randn(6, 4, generator=rng), torch.randint(0, 4, (6,), generator=rng)
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=1.0)
    torch.testing.assert_close(loss(scores, target), nn.CrossEntropyLoss()(scores, target))


@pytest.mark.parametrize(
    ("threshold", "min_kept", "expected"), [(2.0, 1, 3.5), (2.0, 3, 3.0), (9.0, 1, 4.0), (9.0, 0, 0.0), (0.0, 1, 2.5)]
)
def test_threshold(threshold: float, min_kept: int, expected: float) -> None:
    """Keeps the losses strictly above the threshold, and at least `min_kept`."""
    loss = OHEMLoss(given_losses, min_kept=min_kept, threshold=threshold)
    assert kept(loss, [1.0, 4.0, 2.0, 3.0]) == pytest.approx(expected)


def test_half_precision_is_ranked_and_averaged_in_float32() -> None:
    """Uses 40 000 losses of 8, the sum of which is above the largest float16."""
    values = torch.full((40_000,), 8.0, dtype=torch.float16)
    assert OHEMLoss(given_losses, keep=1.0)(values, NOTHING).item() == 8.0


def test_nan_is_reported_and_mined_last() -> None:
    with pytest.warns(RuntimeWarning, match="NaN"):
        assert kept(OHEMLoss(given_losses, 0.5), [math.nan, 1.0, 3.0, math.nan]) == 2.0


def test_ignored_loss_may_be_nan() -> None:
    loss = OHEMLoss(given_losses, 1.0)
    assert loss(torch.tensor([math.nan, 1.0]), NOTHING, torch.tensor([False, True])).item() == 1.0


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.MSELoss(reduction="sum")])
def test_reducing_criterion_is_refused_with_the_fix(criterion: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf'{type(criterion).__name__}\(reduction="none"\)'):
        OHEMLoss(criterion)
    with pytest.raises(ValueError, match='reduction="none"'):
        OHEMLoss(lambda a, b: (a - b).mean())(torch.ones(2), torch.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.5}, "keep"),
        ({"min_kept": -1}, "min_kept"),
        ({"per_image": True, "global_batch": True}, "choose one"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OHEMLoss(given_losses, **options)  # type: ignore[arg-type]


def test_valid_must_have_the_shape_of_the_losses() -> None:
    with pytest.raises(ValueError, match="give it that shape"):
        OHEMLoss(given_losses)(torch.ones(3), NOTHING, torch.ones(2, dtype=torch.bool))


def test_copies_and_pickles_and_repr_keep_the_settings() -> None:
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=0.5)
    loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert copy.deepcopy(loss).mining == pickle.loads(pickle.dumps(loss)).mining == loss.mining
    assert "keep=0.5" in repr(loss)
    assert OHEMLoss(nn.L1Loss(reduction="none")).mining == {}


MINI_BATCHES = ([5.0, 1.0, 4.0], [3.0, 9.0, 2.0, 0.5, 8.0])


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(MINI_BATCHES))
    values = torch.tensor(MINI_BATCHES[rank], requires_grad=True)
    criterion = OHEMLoss(given_losses, keep=0.5, global_batch=True)
    loss = criterion(values, NOTHING)
    loss.backward()
    # The trainer of Hugging Face counts 16 labels in all processes and mini-batches, and multiplies by the processes.
    share = criterion(values.detach(), torch.zeros_like(values), num_items_in_batch=torch.tensor(16.0)) * 2
    torch.save((loss.detach(), values.grad, share), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_hardest_of_the_global_batch(tmp_path: Path) -> None:
    """Keeps the hardest four of all eight losses: 9, 8, 5 and 4. The mean over the processes is their mean."""
    start_processes(_process, (str(tmp_path),), len(MINI_BATCHES), start_method="forkserver")
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(MINI_BATCHES))]
    assert sum(loss for loss, _, _ in results).item() / 2 == pytest.approx((9 + 8 + 5 + 4) / 4)
    # DistributedDataParallel takes the mean over two processes, half of the sum: the four have a share of 1 / 4 each.
    assert [(grad / 2).tolist() for _, grad, _ in results] == [[0.25, 0.0, 0.25], [0.0, 0.25, 0.0, 0.0, 0.25]]
    # These mini-batches have 8 of the 16 labels.
    assert sum(share for _, _, share in results).item() / 2 == pytest.approx((9 + 8 + 5 + 4) / 4 * 8 / 16)


def test_global_batch_without_processes() -> None:
    assert kept(OHEMLoss(given_losses, 0.5, global_batch=True), [1.0, 4.0, 2.0, 3.0]) == 3.5


# --- arguments of users


def test_third_argument_of_the_criterion_is_passed_on() -> None:
    anchor, positive, negative = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    triplet = nn.TripletMarginLoss(reduction="none")
    every = triplet(anchor, positive, negative)
    loss = OHEMLoss(triplet, keep=0.5)
    torch.testing.assert_close(loss(anchor, positive, negative), every.topk(3).values.mean())
    valid = torch.tensor([True, False, True, True, False, True])
    for mean in (loss(anchor, positive, negative, valid), loss(anchor, positive, negative, valid=valid)):
        torch.testing.assert_close(mean, every[valid].topk(2).values.mean())
    with pytest.raises(TypeError, match="5 arguments were given, and the criterion requires 3"):
        loss(anchor, positive, negative, valid, valid)
    with pytest.raises(TypeError, match="4 arguments"):
        loss(anchor, positive, negative, valid, valid=valid)


def test_options_of_the_criterion_are_passed_on() -> None:
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = OHEMLoss(nn.functional.cross_entropy, keep=1.0)(logits, target, reduction="none", weight=weight)
    expected = nn.functional.cross_entropy(logits, target, reduction="none", weight=weight).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_valid_may_be_0_and_1(dtype: torch.dtype) -> None:
    logits, target = torch.randn(6, 3), torch.randint(0, 3, (6,))
    valid = torch.tensor([1, 0, 1, 0, 1, 1])
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=1.0)
    expected = nn.functional.cross_entropy(logits[valid == 1], target[valid == 1])
    for mean in (loss(logits, target, valid.to(dtype)), loss(logits, target, valid=valid.to(dtype))):
        torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("valid", [torch.tensor([0, 2, 4, 5, 1, 1]), torch.tensor([0.5] * 6)])
def test_valid_with_other_values_is_refused(valid: Tensor) -> None:
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ValueError, match="valid must be bool, or 0 and 1"):
        loss(torch.randn(6, 3), torch.zeros(6, dtype=torch.int64), valid)


def test_float64_stays_float64_with_the_correct_gradient() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (6,))
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=0.5)
    assert loss(logits, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))
    assert loss(logits[:0], target[:0]).dtype == torch.float64
    assert loss(logits.bfloat16(), target).dtype == torch.float32


def test_another_criterion_can_rank() -> None:
    """Checks that the class weights are used in training, but do not influence the choice."""
    logits, target = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    logits[:, 0] = torch.tensor([3.0, 3.0, -3.0, 0.0])  # plain losses: small, large, large, middle
    weights = torch.tensor([0.0, 1.0])
    trained = nn.CrossEntropyLoss(weights, reduction="none")
    loss = OHEMLoss(trained, keep=0.5, rank_by=nn.CrossEntropyLoss(reduction="none"))
    assert loss(logits, target) == trained(logits, target)[[1, 2]].mean()
    assert OHEMLoss(trained, keep=0.5)(logits, target) == trained(logits, target)[[1, 3]].mean()
    with pytest.raises(ValueError, match="rank_by must give a loss for every example"):
        OHEMLoss(trained, rank_by=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"rank_by gave losses of shape \(4, 2\), and the criterion \(4,\)"):
        OHEMLoss(trained, rank_by=lambda x, y: x)(logits, target)


class IgnoresReduction(nn.Module):
    """Imitates a criterion that has the attribute `reduction` but ignores it."""

    reduction = "none"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean()


def test_criterion_that_ignores_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r'returned a single number.*IgnoresReduction was given reduction="none"'):
        OHEMLoss(IgnoresReduction())(torch.zeros(3), torch.ones(3))
    with pytest.raises(
        ValueError, match=r"returned a single number.*<lambda> has no argument reduction: make it return"
    ):
        OHEMLoss(lambda x, y: (x - y).mean())(torch.zeros(3), torch.ones(3))
    with pytest.raises(TypeError, match=r"criterion must return losses, a tensor of floating dtype, not 0\.0"):
        OHEMLoss(lambda x, y: 0.0)(torch.zeros(3), torch.ones(3))


class Output(dict):  # type: ignore[type-arg]
    """Imitates the output of Hugging Face models: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize("wrap", [lambda x: Output(loss=None, logits=x), lambda x: SimpleNamespace(logits=x)])
def test_loss_works_in_the_trainer_of_hugging_face(wrap: Callable[[Tensor], Any]) -> None:
    """Calls the loss as the trainer does: `compute_loss_func(outputs, labels, num_items_in_batch=...)`."""
    logits, labels = torch.randn(6, 3), torch.randint(0, 3, (6,))
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), keep=0.5)
    expected = loss(logits, labels)
    assert loss(wrap(logits), labels, num_items_in_batch=None) == expected
    for items in (24, torch.tensor(24)):
        torch.testing.assert_close(loss(wrap(logits), labels, num_items_in_batch=items), expected * 6 / 24)
    labels[:2] = -100
    torch.testing.assert_close(loss(logits, labels, num_items_in_batch=24), loss(logits, labels) * 4 / 24)
    labels[:] = -100
    assert loss(logits, labels, num_items_in_batch=torch.tensor(0)) == 0
    with pytest.raises(TypeError, match="the target, with num_items_in_batch, must be a tensor"):
        OHEMLoss(lambda x, y: x)(torch.zeros(3), [1], num_items_in_batch=3)


def test_threshold_of_segmentation_is_a_probability() -> None:
    """Checks that the examples with a probability below 0.7 are kept."""
    probability = torch.tensor([0.9, 0.71, 0.69, 0.2])
    logits = torch.stack([probability.log(), (1 - probability).log()], dim=1)
    loss = OHEMLoss(nn.CrossEntropyLoss(reduction="none"), threshold=-math.log(0.7), min_kept=0)
    loss(logits, torch.zeros(4, dtype=torch.int64))
    assert loss.mining["kept"] == 2
