"""The mining core, compared with a plain greedy suppression and with the authors' recorded choices."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms

from ohem.boxes import from_inclusive
from ohem.mining import hard_examples, hard_rois
from ohem.rois import RoIs
from ohem.samplers import OHEMSampler
from tests.helpers.fake_gpu import host_reads
from tests.helpers.reference import needs_shared, reference

NAN, INF = math.nan, math.inf
UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def choose(losses: Sequence[float], k: int) -> list[int]:
    return hard_examples(torch.tensor(losses), k).tolist()


def choose_rois(
    losses: Sequence[float],
    boxes: Sequence[Sequence[float]],
    groups: Sequence[int],
    k: int = 99,
    iou: float | None = 0.7,
) -> list[int]:
    n = len(losses)
    return hard_rois(
        torch.tensor(losses), torch.tensor(boxes, dtype=torch.float32).reshape(n, 4), torch.tensor(groups), k, iou
    ).tolist()


# ---------------------------------------------------------------------------------------------------- hard_examples


def test_hardest_first() -> None:
    assert choose([0.5, 3.0, -1.0, 2.0], 2) == [1, 3]


def test_ties_go_to_the_lower_index() -> None:
    assert choose([1.0, 2.0, 2.0, 1.0, 2.0], 4) == [1, 2, 4, 0]
    assert choose([0.0] * 1000, 1000) == list(range(1000))


def test_nan_is_never_ahead_of_a_number() -> None:
    assert choose([NAN, 1.0, INF, NAN, -INF, 0.0], 6) == [2, 1, 5, 4, 0, 3]
    assert choose([NAN, NAN], 1) == [0]


@pytest.mark.parametrize(("k", "expected"), [(0, []), (1, [1]), (3, [1, 0, 2]), (99, [1, 0, 2])])
def test_k(k: int, expected: list[int]) -> None:
    assert choose([1.0, 2.0, 0.0], k) == expected
    assert choose_rois([1.0, 2.0, 0.0], [UNIT, FAR, [90, 90, 99, 99]], [0, 0, 0], k) == expected


def test_empty() -> None:
    for actual in (
        hard_examples(torch.zeros(0), 5),
        hard_rois(torch.zeros(0), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5),
    ):
        assert actual.shape == (0,)
        assert actual.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_ranked_as_its_values_are(dtype: torch.dtype) -> None:
    losses = torch.rand(2000, generator=torch.Generator().manual_seed(0)).mul(20).to(dtype)
    values = losses.float().tolist()
    assert hard_examples(losses, 300).tolist() == sorted(range(2000), key=lambda i: (-values[i], i))[:300]


@pytest.mark.parametrize(
    ("losses", "boxes", "groups", "k"),
    [
        (torch.zeros(2, 1), torch.zeros(2, 4), torch.zeros(2), 1),
        (torch.zeros(2), torch.zeros(3, 4), torch.zeros(2), 1),
        (torch.zeros(2), torch.zeros(2, 5), torch.zeros(2), 1),
        (torch.zeros(2), torch.zeros(2, 4), torch.zeros(3), 1),
        (torch.zeros(2), torch.zeros(2, 4), torch.zeros(2), -1),
    ],
)
def test_bad_input(losses: Tensor, boxes: Tensor, groups: Tensor, k: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        hard_rois(losses, boxes, groups.long(), k)


def test_bad_input_of_hard_examples() -> None:
    with pytest.raises(ValueError, match=r"losses must be of shape \(R,\), not \(2, 2\)"):
        hard_examples(torch.zeros(2, 2), 1)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        hard_examples(torch.zeros(2), -1)


@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, NAN]), max_size=30), st.integers(0, 40))
def test_hard_examples_is_a_stable_sort(losses: list[float], k: int) -> None:
    by_hand = sorted(
        range(len(losses)), key=lambda i: (math.isnan(losses[i]), -losses[i] if losses[i] == losses[i] else 0)
    )
    assert choose(losses, k) == by_hand[:k]


def test_a_gpu_never_reports_a_length() -> None:
    """Uses the device "meta", which has no values: an operation that needs one fails."""
    assert hard_examples(torch.empty(1000, device="meta"), 64).shape == (64,)
    losses = torch.rand(1000)
    assert host_reads(lambda: hard_examples(losses, 64)) == []
    assert len(host_reads(lambda: (losses[losses > 0.5].mean().item(), losses.nonzero()))) == 3


# -------------------------------------------------------------------------------------------------------- hard_rois


def test_the_hardest_of_a_neighbourhood_is_kept() -> None:
    nearby = [0.0, 0.0, 10.0, 9.0]  # IoU 0.9
    assert choose_rois([1.0, 3.0, 2.0], [UNIT, nearby, FAR], [0, 0, 0]) == [1, 2]
    assert choose_rois([3.0, 1.0, 2.0], [UNIT, nearby, FAR], [0, 0, 0]) == [0, 2]


def test_only_kept_rois_suppress() -> None:
    """Uses a chain: 0 suppresses 1, which therefore does not suppress 2."""
    chain = [[0.0, 0.0, 10.0, 10.0], [0.0, 2.0, 10.0, 12.0], [0.0, 4.0, 10.0, 14.0]]  # neighbours 0.67, ends 0.43
    assert choose_rois([3.0, 2.0, 1.0], chain, [0, 0, 0], iou=0.5) == [0, 2]


def test_suppression_is_strictly_above_the_threshold() -> None:
    half = [0.0, 0.0, 10.0, 5.0]  # IoU 0.5 exactly
    assert choose_rois([2.0, 1.0], [UNIT, half], [0, 0], iou=0.5) == [0, 1]
    assert choose_rois([2.0, 1.0], [UNIT, half], [0, 0], iou=0.4999) == [0]


def test_the_threshold_is_0_7_unless_given() -> None:
    boxes = torch.tensor([UNIT, [0, 0, 10, 7.1], [0, 0, 10, 6.9]])
    assert hard_rois(torch.tensor([3.0, 2.0, 1.0]), boxes, torch.zeros(3).long(), 3).tolist() == [0, 2]


def test_none_switches_suppression_off() -> None:
    assert choose_rois([1.0, 3.0, 2.0], [UNIT] * 3, [0, 0, 0], iou=None) == [1, 2, 0]


def test_k_counts_survivors_not_candidates() -> None:
    assert choose_rois([5.0, 4.0, 3.0, 2.0], [UNIT, UNIT, UNIT, FAR], [0] * 4, k=2) == [0, 3]


@pytest.mark.parametrize("k", [1, 8, 40, 60])
@pytest.mark.parametrize("groups", [1, 2])
def test_few_of_very_many_are_the_first_of_all_survivors(k: int, groups: int) -> None:
    """Uses 6000 boxes in 25 places: few survive, so that the hardest thousand do not contain `k` survivors."""
    rng = torch.Generator().manual_seed(k)
    losses, owner = torch.rand(6000, generator=rng), torch.randint(0, groups, (6000,), generator=rng)
    corner = 50.0 * torch.randint(0, 5, (6000, 2), generator=rng) + torch.rand(6000, 2, generator=rng)
    losses[corner[:, 0] < 50] += 1  # the hardest are all in one column
    boxes = torch.cat([corner, corner + 20], dim=1)
    everything = hard_rois(losses, boxes, owner, 6000)
    assert len(everything) == 25 * groups
    assert torch.equal(hard_rois(losses, boxes, owner, k), everything[:k])


def test_duplicates_keep_the_lower_index() -> None:
    assert choose_rois([1.0, 1.0, 1.0], [UNIT] * 3, [0, 0, 0]) == [0]


def test_a_nan_does_not_suppress_a_number() -> None:
    assert choose_rois([NAN, -INF], [UNIT, UNIT], [0, 0]) == [1]


def test_groups_do_not_suppress_other_groups() -> None:
    for groups in ([0, 1], [-3, 7], [2**60, 2**60 + 1], [-(2**62), 2**62]):
        assert choose_rois([1.0, 2.0], [UNIT, UNIT], groups) == [1, 0]
        assert choose_rois([1.0, 2.0], [UNIT, UNIT], groups[:1] * 2) == [1]


def test_boxes_without_area_are_harmless() -> None:
    assert choose_rois([1.0, 2.0, 3.0], [[5, 5, 5, 5], [5, 5, 5, 5], UNIT], [0, 0, 0]) == [2, 1, 0]


def test_losses_with_a_graph_are_only_read() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    boxes, before = torch.tensor([UNIT, FAR]), torch.tensor([UNIT, FAR])
    assert hard_rois(losses, boxes, torch.zeros(2).long(), 1).tolist() == [1]
    assert torch.equal(boxes, before)


def test_half_precision_losses_and_boxes() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0])
    boxes = torch.tensor([UNIT, UNIT, FAR])
    for dtype in (torch.float16, torch.bfloat16):
        assert hard_rois(losses.to(dtype), boxes.to(dtype), torch.zeros(3).long(), 3).tolist() == [2, 1]


Case = tuple[list[float], list[list[int]], list[int], int, float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws few places and sizes, some negative, so that IoUs meet the thresholds, and few losses, so that they tie."""
    n = draw(st.integers(0, 14))
    ints = st.integers(-6, 6)
    corners = draw(st.lists(st.tuples(ints, ints, st.integers(1, 6), st.integers(1, 6)), min_size=n, max_size=n))
    values = st.sampled_from([0.0, 1.0, 2.0, NAN, INF, -INF]) | st.floats(0, 9, width=32)
    losses = draw(st.lists(values, min_size=n, max_size=n))
    groups = draw(st.lists(st.sampled_from([0, 1, 2, -5, 2**55, 2**55 + 1]), min_size=n, max_size=n))
    k = draw(st.integers(0, n + 2))
    boxes = [[x, y, x + w, y + h] for x, y, w, h in corners]
    return losses, boxes, groups, k, draw(st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    lower, upper = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.clip(upper - lower, 0, None))
    return float(shared / (np.prod(np.subtract(a[2:], a[:2])) + np.prod(np.subtract(b[2:], b[:2])) - shared))


def brute_force(losses: list[float], boxes: list[list[int]], groups: list[int], k: int, iou: float) -> list[int]:
    """Keeps a RoI, hardest first, if no kept RoI of its group overlaps it by more than `iou`."""
    hardness = [(math.isnan(loss), 0.0 if math.isnan(loss) else -loss) for loss in losses]
    kept: list[int] = []
    for i in sorted(range(len(losses)), key=hardness.__getitem__):
        if all(groups[i] != groups[j] or overlap(boxes[i], boxes[j]) <= iou for j in kept):
            kept.append(i)
    return kept[:k]


def _crowded(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns losses, boxes and groups with few survivors: most boxes are at one of a few places, moved a little."""
    rng = torch.Generator().manual_seed(seed)
    corner = 40.0 * torch.randint(0, 12, (n, 2), generator=rng) + torch.rand(n, 2, generator=rng)
    return (
        torch.rand(n, generator=rng),
        torch.cat([corner, corner + 30], dim=1),
        torch.randint(0, 2, (n,), generator=rng),
    )


@pytest.mark.parametrize("k", [1, 5, 50, 200, 288, 1000])
def test_the_k_hardest_are_those_of_all_survivors(k: int) -> None:
    """Checks the choice wherever in the ranking it ends: of 3000 RoIs at most 288 survive."""
    losses, boxes, groups = _crowded(3000, seed=k)
    everything = hard_rois(losses, boxes, groups, len(losses))
    assert len(everything) <= 288
    expected = batched_nms(boxes, losses, groups, 0.7)
    assert torch.equal(everything, expected)
    assert torch.equal(hard_rois(losses, boxes, groups, k), expected[:k])


def test_the_host_waits_for_the_number_of_survivors_alone() -> None:
    losses, boxes, groups = _crowded(3000, seed=0)
    assert host_reads(lambda: hard_rois(losses, boxes, groups, 64)) == ["torchvision::nms"]
    assert host_reads(lambda: hard_rois(losses, boxes, groups, 64, None)) == []


@given(cases())
def test_against_brute_force(case: Case) -> None:
    assert choose_rois(*case) == brute_force(*case)


@given(cases())
def test_groups_together_equal_separate_groups(case: Case) -> None:
    losses, boxes, groups, _, iou = case
    separate: list[int] = []
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group]
        alone = choose_rois([losses[i] for i in members], [boxes[i] for i in members], [0] * len(members), iou=iou)
        separate += [members[j] for j in alone]
    assert sorted(choose_rois(losses, boxes, groups, iou=iou)) == sorted(separate)


@given(cases(), st.integers(-500, 500), st.integers(-500, 500))
def test_moving_all_boxes_changes_nothing(case: Case, x: int, y: int) -> None:
    losses, boxes, *rest = case
    moved = [[a + x, b + y, c + x, d + y] for a, b, c, d in boxes]
    assert choose_rois(losses, moved, *rest) == choose_rois(losses, boxes, *rest)


@given(case=cases(), axis=st.integers(0, 2))
def test_volumes_of_depth_1_are_chosen_as_their_rectangles(case: Case, axis: int) -> None:
    losses, boxes, groups, k, iou = case
    flat = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 2, 2)
    depth = torch.tensor([0.0, 1.0]).expand(len(boxes), 2)[:, :, None]
    volumes = torch.cat([flat[:, :, :axis], depth, flat[:, :, axis:]], dim=2).flatten(1)
    chosen = hard_rois(torch.tensor(losses), volumes, torch.tensor(groups, dtype=torch.int64), k, iou)
    assert chosen.tolist() == choose_rois(losses, boxes, groups, k, iou)


def test_boxes_without_volume_are_harmless() -> None:
    volumes = torch.tensor([[5.0] * 6, [5.0] * 6, [0.0, 0.0, 0.0, 10.0, 10.0, 10.0]])
    assert hard_rois(torch.tensor([1.0, 2.0, 3.0]), volumes, torch.zeros(3).long(), 3).tolist() == [2, 1, 0]


def test_volumes_are_suppressed_by_their_volumes() -> None:
    """Their IoU is 1/3 with the next one in depth, and 0 with the one after it."""
    volumes = torch.tensor([[0.0, 0.0, z, 10.0, 10.0, z + 10] for z in (0.0, 5.0, 10.0, 15.0)])
    losses, groups = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.zeros(4, dtype=torch.int64)
    assert hard_rois(losses, volumes, groups, 4, 0.3).tolist() == [0, 2]
    assert hard_rois(losses, volumes, groups, 4, 0.34).tolist() == [0, 1, 2, 3]
    assert hard_rois(losses, volumes, groups, 1, 0.3).tolist() == [0]
    rois = RoIs(volumes, groups, groups, torch.zeros(4, 6), torch.zeros(4), 1)
    # With the last voxel as part of the box, the IoU is 6/16.
    assert OHEMSampler(4, 0.35, inclusive=True)(rois, lambda: losses).tolist() == [0, 2]
    assert OHEMSampler(4, 0.35)(rois, lambda: losses).tolist() == [0, 1, 2, 3]


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_matters_only_for_ties(case: Case, random: Any) -> None:
    _, boxes, groups, k, iou = case
    n = len(boxes)
    losses = [float(i) for i in random.sample(range(n), n)]
    order = random.sample(range(n), n)
    shuffled = choose_rois([losses[i] for i in order], [boxes[i] for i in order], [groups[i] for i in order], k, iou)
    assert [order[i] for i in shuffled] == choose_rois(losses, boxes, groups, k, iou)


# ------------------------------------------------------------------------------------------------ the authors' choices


def _recorded() -> list[Any]:
    try:
        return [pytest.param(case, id=case["name"]) for case in reference("ohem_selection")]
    except FileNotFoundError:
        return [pytest.param(None, id="absent")]


def _columns(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns images, boxes as recorded (last pixel inclusive), labels and losses."""
    rois = torch.tensor(case["rois"])
    return rois[:, 0].long(), rois[:, 1:], torch.tensor(case["labels"]), torch.tensor(case["loss"])


def _check_recorded(case: dict[str, Any], chosen: list[int], again: list[int]) -> None:
    assert chosen == again
    if case["name"] == "all_zero_loss":  # the order of ties in the authors' sort is arbitrary
        assert len(chosen) == len(case["hard_inds_in_order"])
    else:
        assert chosen == case["hard_inds_in_order"]


@needs_shared
@pytest.mark.parametrize("case", _recorded())
def test_recorded_selection_by_hard_rois(case: dict[str, Any]) -> None:
    images, boxes, labels, losses = _columns(case)
    groups = images * 1000 + labels  # the release suppresses within (image, label)
    iou = case["nms_thresh"] if case["use_nms"] else None
    chosen, again = (
        hard_rois(losses, from_inclusive(boxes), groups, case["batch_size"], iou).tolist() for _ in range(2)
    )
    _check_recorded(case, chosen, again)


@needs_shared
@pytest.mark.parametrize("case", _recorded())
def test_recorded_selection_by_the_sampler(case: dict[str, Any]) -> None:
    images, boxes, labels, losses = _columns(case)
    num_images = int(images.max()) + 1
    # Our size is per image, the authors' is for the mini-batch.
    size, rest = divmod(case["batch_size"], num_images)
    assert rest == 0
    sampler = OHEMSampler(
        size, case["nms_thresh"] if case["use_nms"] else None, per_image=False, suppress="label", inclusive=True
    )
    rois = RoIs(boxes, images, labels, torch.zeros(len(boxes), 4), torch.zeros(len(boxes)), num_images)
    chosen, again = (sampler(rois, lambda: losses).tolist() for _ in range(2))
    _check_recorded(case, chosen, again)


@needs_shared
def test_the_recorded_cases_separate_the_conventions() -> None:
    """Checks that two cases give another choice without the "+ 1", or with suppression over the image."""
    by_name = {case["name"]: case for case in reference("ohem_selection")}
    images, boxes, labels, losses = _columns(by_name["iou_plus_one_is_0.72"])
    assert hard_rois(losses, boxes, images * 1000 + labels, 8).tolist() == [0, 1]
    images, boxes, labels, losses = _columns(by_name["fg_bg_same_box_both_kept"])
    assert hard_rois(losses, from_inclusive(boxes), images, 8).tolist() == [2]


@needs_shared
def test_sixteen_cases_are_recorded() -> None:
    assert len(_recorded()) == 16
