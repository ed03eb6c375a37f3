"""The detection loss: values recorded from the authors' code, cases by hand, and known pitfalls."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ohem.losses import detection_loss, roi_losses
from ohem.mining import hard_examples
from ohem.rois import RoIs
from tests.helpers.make_rois import make_rois
from tests.helpers.reference import needs_shared, reference

LABELS = [0, 2, 1, 0, -1, 2, 0]
CLASSES = 3


def example(labels: list[int] = LABELS) -> tuple[Tensor, Tensor, RoIs]:
    rng = torch.Generator().manual_seed(0)
    n = len(labels)
    rois = make_rois(labels)
    rois.targets.copy_(torch.randn(n, 4, generator=rng))
    scores = torch.randn(n, CLASSES, generator=rng).requires_grad_()
    return scores, torch.randn(n, CLASSES, 4, generator=rng).requires_grad_(), rois


def backward(loss: dict[str, Tensor], *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss["loss_classifier"] + loss["loss_box_reg"], leaves))


# --- roi_losses


def test_losses_by_hand() -> None:
    rois = make_rois([0, 1, -1])
    rois.targets[1] = torch.tensor([0.5, -2.0, 0.0, 1.0])
    scores = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [5.0, -5.0]])
    classifier, box_reg = roi_losses(scores, torch.zeros(3, 2, 4), rois)
    torch.testing.assert_close(classifier, torch.tensor([math.log(2), math.log(4 / 3), 0.0]))
    # Smooth L1 of 0.5, 2, 0 and 1: 0.125 + 1.5 + 0 + 0.5.
    torch.testing.assert_close(box_reg, torch.tensor([0.0, 2.125, 0.0]))
    # With beta 0.5 it is linear from 0.5: 0.25 + 1.75 + 0 + 0.75.
    box_reg = roi_losses(scores, torch.zeros(3, 2, 4), rois, beta=0.5)[1]
    torch.testing.assert_close(box_reg, torch.tensor([0.0, 2.75, 0.0]))


def test_box_loss_uses_the_deltas_of_the_own_class() -> None:
    rois = make_rois([2])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1] = 100
    assert roi_losses(torch.zeros(1, 3), deltas, rois)[1].item() == 0
    deltas[0, 2, 3] = 2
    assert roi_losses(torch.zeros(1, 3), deltas, rois)[1].item() == 1.5


def test_ignored_rois_have_no_loss_and_background_no_box_loss() -> None:
    scores, deltas, rois = example()
    classifier, box_reg = roi_losses(scores, deltas, rois)
    assert ((box_reg > 0) == rois.foreground).all()
    assert ((classifier > 0) == (rois.labels >= 0)).all()
    for gradient in backward(detection_loss(scores, deltas, rois), scores, deltas):
        assert not gradient[rois.labels == -1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_float32(dtype: torch.dtype) -> None:
    scores, deltas, rois = example()
    losses = roi_losses(scores.detach().to(dtype), deltas.detach().to(dtype), rois)
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    expected = roi_losses(scores.detach().to(dtype).float(), deltas.detach().to(dtype).float(), rois)
    assert all(torch.equal(a, b) for a, b in zip(losses, expected, strict=True))


def test_losses_of_float64_are_not_rounded() -> None:
    scores, deltas, rois = example()
    for loss, rounded in zip(
        roi_losses(scores.double(), deltas.double(), rois), roi_losses(scores, deltas, rois), strict=True
    ):
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss.float(), rounded)
        assert not torch.equal(loss, rounded.double())


def test_huge_logits_neither_saturate_nor_tie() -> None:
    """Uses gaps at which a clamped probability makes all losses 36.04, so that mining chooses arbitrarily."""
    gaps = torch.tensor([37.0, 40.0, 100.0, 99.0, 1000.0, 1e6])
    scores = torch.stack([torch.zeros(6), gaps], dim=1)
    for dtype in (torch.float32, torch.bfloat16):
        losses = roi_losses(scores.to(dtype), torch.zeros(6, 2, 4), make_rois([0] * 6))[0]
        torch.testing.assert_close(losses, gaps, rtol=0.01, atol=0)
        assert len(losses.unique()) == 6
        assert hard_examples(losses, 6).tolist() == [5, 4, 2, 3, 1, 0]


@needs_shared
def test_losses_equal_those_of_the_authors_code() -> None:
    case = reference("ohem_ranking_loss")
    compact = torch.tensor(case["bbox_targets_compact"])
    rois = make_rois(case["labels"])
    assert compact[:, 0].tolist() == case["labels"]
    rois.targets.copy_(compact[:, 1:])
    deltas = torch.tensor(case["bbox_pred"]).unflatten(1, (4, 4))
    losses = roi_losses(torch.tensor(case["logits"]), deltas, rois)
    recorded = [torch.tensor(case[name]) for name in ("cls_loss", "bbox_loss", "ranking_loss")]
    # The loss of the authors' code saturates at 36.04 (see the test above); these losses are all below.
    assert recorded[0].max() < case["saturation"]
    for ours, theirs in zip((*losses, losses[0] + losses[1]), recorded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- detection_loss


def test_all_chosen_is_the_plain_mean() -> None:
    scores, deltas, rois = example([0, 2, 1, 0])
    losses = detection_loss(scores, deltas, rois)
    torch.testing.assert_close(losses["loss_classifier"], functional.cross_entropy(scores, rois.labels))
    box = sum(functional.smooth_l1_loss(deltas[i, c], rois.targets[i], reduction="sum") for i, c in ((1, 2), (2, 1)))
    torch.testing.assert_close(losses["loss_box_reg"], torch.as_tensor(box) / 4)
    chosen = detection_loss(scores, deltas, rois, chosen=torch.tensor([3, 0, 2, 1]))
    for name, value in losses.items():
        torch.testing.assert_close(chosen[name], value)


def test_chosen_equals_leaving_out_the_other_rois() -> None:
    scores, deltas, rois = example()
    chosen = torch.tensor([5, 0, 2])
    masked = detection_loss(scores, deltas, rois, chosen=chosen)
    indexed = detection_loss(scores[chosen], deltas[chosen], rois[chosen])
    for name in masked:
        torch.testing.assert_close(masked[name], indexed[name])
    gradients = backward(masked, scores, deltas), backward(indexed, scores, deltas)
    others = torch.ones(len(rois), dtype=torch.bool).index_fill(0, chosen, False)
    for of_masked, of_indexed in zip(*gradients, strict=True):
        torch.testing.assert_close(of_masked, of_indexed)
        assert not of_masked[others].any()
        assert of_masked[chosen].any()


def test_divisor_is_the_number_of_rois_trained_on() -> None:
    """Checks that it is not the number of all RoIs or a fixed batch size. Background counts for both losses."""
    scores, deltas, rois = example()
    classifier, box_reg = roi_losses(scores, deltas, rois)
    for chosen in ([5], [5, 0], [5, 0, 3, 6]):
        losses = detection_loss(scores, deltas, rois, chosen=torch.tensor(chosen))
        torch.testing.assert_close(losses["loss_classifier"], classifier[chosen].sum() / len(chosen))
        torch.testing.assert_close(losses["loss_box_reg"], box_reg[5] / len(chosen))


def test_nothing_chosen_gives_zero_with_a_graph() -> None:
    scores, deltas, rois = example()
    none = torch.zeros(0, dtype=torch.int64)
    for losses in (
        detection_loss(scores, deltas, rois, chosen=none),
        detection_loss(scores[none], deltas[none], rois[none]),
        detection_loss(scores[none], deltas[none], rois[none], chosen=none),
    ):
        assert [value.item() for value in losses.values()] == [0, 0]
        assert all(value.shape == () for value in losses.values())
        for gradient in backward(losses, scores, deltas):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_only_background_has_no_box_loss() -> None:
    scores, deltas, rois = example([0, 0, 0])
    losses = detection_loss(scores, deltas, rois)
    assert losses["loss_box_reg"].item() == 0
    assert losses["loss_classifier"].item() > 0
    assert not backward(losses, scores, deltas)[1].any()


def test_sum_does_not_change_its_terms() -> None:
    """Checks for a sum in place: `loss = classifier; loss += box_reg` would change `classifier`."""
    scores, deltas, rois = example()
    classifier, box_reg = roi_losses(scores, deltas, rois)
    before = classifier.clone(), box_reg.clone()
    losses = detection_loss(scores, deltas, rois)
    assert torch.equal(classifier, before[0])
    assert torch.equal(box_reg, before[1])
    torch.testing.assert_close(losses["loss_classifier"], classifier.sum() / len(rois))
    torch.testing.assert_close(losses["loss_box_reg"], box_reg.sum() / len(rois))
