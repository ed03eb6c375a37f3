"""Labels and regression targets: cases counted by hand, and the authors' recorded values."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from ohem import rois as module
from ohem.boxes import encode, from_inclusive
from ohem.rois import BOX_MEAN, BOX_STD, RoIs, _match_image, match, target_statistics
from tests.helpers.fake_gpu import host_reads
from tests.helpers.make_rois import make_rois, near, random_target
from tests.helpers.reference import needs_shared, reference

Box = list[float]
UNIT: Box = [0.0, 0.0, 10.0, 10.0]
FAR: Box = [60.0, 60.0, 70.0, 70.0]


def boxes(*rows: Box) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def target(*objects: tuple[Box, int], ignored: tuple[Box, ...] = ()) -> dict[str, Tensor]:
    """Returns a target from objects as (box, label) and from ignored boxes, which come first and have label 1."""
    return {
        "boxes": boxes(*ignored, *(box for box, _ in objects)),
        "labels": torch.tensor([1] * len(ignored) + [label for _, label in objects], dtype=torch.int64),
        "ignore": torch.tensor([True] * len(ignored) + [False] * len(objects), dtype=torch.bool),
    }


def labels_of(proposals: list[Box], *objects: tuple[Box, int], ignored: tuple[Box, ...] = ()) -> list[int]:
    """Returns the labels of the proposals only."""
    actual = match([boxes(*proposals)], [target(*objects, ignored=ignored)]).labels.tolist()
    return actual[len(objects) :]


# ------------------------------------------------------------------------------------------------------------- match


def test_by_hand() -> None:
    rois = match([boxes([0, 0, 9, 8], FAR)], [target((UNIT, 3))])
    assert rois.boxes.tolist() == [UNIT, [0, 0, 9, 8], FAR]
    assert rois.labels.tolist() == [3, 3, 0]
    assert rois.images.tolist() == [0, 0, 0]
    torch.testing.assert_close(rois.ious, torch.tensor([1.0, 0.72, 0.0]))
    # From 9 x 8 centred at (4.5, 4) to 10 x 10 at (5, 5), divided by 0.1, 0.1, 0.2, 0.2.
    expected = [(0.5 / 9) / 0.1, (1 / 8) / 0.1, math.log(10 / 9) / 0.2, math.log(10 / 8) / 0.2]
    torch.testing.assert_close(rois.targets[1], torch.tensor(expected))
    assert not rois.targets[0].any()
    assert not rois.targets[2].any()
    assert rois.foreground.tolist() == [True, True, False]


def test_types_and_length() -> None:
    rois = match([boxes(FAR)], [target((UNIT, 1))])
    assert [t.dtype for t in (rois.boxes, rois.targets, rois.ious)] == [torch.float32] * 3
    assert [t.dtype for t in (rois.labels, rois.images)] == [torch.int64] * 2
    assert len(rois) == 2
    assert rois.num_images == 1


def test_foreground_from_an_iou_of_exactly_one_half() -> None:
    assert labels_of([[0, 0, 10, 5], [0, 0, 10, 4.99]], (UNIT, 2)) == [2, 0]


def test_fg_iou_is_an_option() -> None:
    proposals, truth = [boxes([0, 0, 10, 6])], [target((UNIT, 2))]
    assert match(proposals, truth, fg_iou=0.6).labels.tolist() == [2, 2]
    assert match(proposals, truth, fg_iou=0.61).labels.tolist() == [2, 0]


def test_the_ground_truth_comes_first_and_can_be_left_out() -> None:
    proposals, truth = [boxes(FAR)], [target((UNIT, 2), ([20, 20, 30, 30], 1), ignored=([40, 40, 50, 50],))]
    assert match(proposals, truth).boxes.tolist() == [UNIT, [20, 20, 30, 30], FAR]
    assert match(proposals, truth, add_ground_truth=False).boxes.tolist() == [FAR]


def test_the_object_overlapped_most_gives_label_and_target() -> None:
    near_second = [0.0, 3.0, 10.0, 13.0]  # IoU 0.54 with the first, 0.82 with the second
    rois = match([boxes(near_second)], [target((UNIT, 1), ([0, 4, 10, 14], 2))], mean=[0] * 4, std=[1] * 4)
    assert rois.labels.tolist() == [1, 2, 2]
    torch.testing.assert_close(rois.targets[2], torch.tensor([0.0, 0.1, 0.0, 0.0]))


def test_images_do_not_mix() -> None:
    rois = match([boxes(UNIT), boxes(UNIT, FAR)], [target((FAR, 1)), target((FAR, 2))])
    assert rois.images.tolist() == [0, 0, 1, 1, 1]
    assert rois.labels.tolist() == [1, 0, 2, 0, 2]
    assert rois.num_images == 2


def test_no_object_is_all_background() -> None:
    rois = match([boxes(UNIT, FAR)], [target()])
    assert rois.labels.tolist() == [0, 0]
    assert rois.ious.tolist() == [0, 0]
    assert not rois.targets.any()


def test_no_proposal() -> None:
    rois = match([boxes(), boxes(FAR)], [target((UNIT, 4)), target()])
    assert rois.labels.tolist() == [4, 0]
    assert rois.images.tolist() == [0, 1]


def test_nothing_at_all() -> None:
    rois = match([boxes(), boxes()], [target(), target()])
    assert rois.boxes.shape == rois.targets.shape == (0, 4)
    assert rois.num_images == 2
    assert rois.labels.dtype == rois.images.dtype == torch.int64


def test_a_target_without_ignore_ignores_nothing() -> None:
    truth = {"boxes": boxes(UNIT), "labels": torch.tensor([2])}
    assert match([boxes(UNIT, FAR)], [truth]).labels.tolist() == [2, 2, 0]


def test_one_target_per_image() -> None:
    with pytest.raises(ValueError, match="one target per image, not 1 for 2"):
        match([boxes(), boxes()], [target()])


def test_the_input_is_only_read() -> None:
    proposals, truth = boxes([0, 0, 10, 8], FAR), target((UNIT, 3), ignored=(FAR,))
    before = [t.clone() for t in (proposals, *truth.values())]
    match([proposals], [truth])
    assert all(torch.equal(a, b) for a, b in zip(before, (proposals, *truth.values()), strict=True))


def test_indexing() -> None:
    rois = match([boxes(UNIT), boxes(FAR)], [target((FAR, 1)), target()])
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        part = rois[index]
        assert sorted(part.images.tolist()) == [0, 1]
        for name in ("boxes", "images", "labels", "targets", "ious"):
            assert torch.equal(getattr(part, name), getattr(rois, name)[index])
        assert part.num_images == 2
    assert len(rois[torch.zeros(0, dtype=torch.int64)]) == 0


# ---------------------------------------------------------------------------------------------------- ignored regions


def test_covering_half_of_an_ignored_region_is_ignored() -> None:
    region = [20.0, 20.0, 40.0, 40.0]
    around, half, less = [0.0, 0.0, 60.0, 60.0], [10.0, 0.0, 30.0, 50.0], [10.0, 0.0, 29.0, 50.0]
    assert labels_of([around, half, less, FAR, region], (UNIT, 1), ignored=(region,)) == [-1, -1, 0, 0, -1]


def test_lying_in_a_crowd_by_half_is_ignored() -> None:
    crowd = [20.0, 20.0, 100.0, 100.0]
    inside, half, less = [30.0, 30.0, 35.0, 35.0], [10.0, 30.0, 30.0, 40.0], [9.0, 30.0, 29.0, 40.0]
    assert labels_of([inside, half, less], (UNIT, 1), ignored=(crowd,)) == [-1, -1, 0]


def test_touching_an_ignored_region_is_background() -> None:
    assert labels_of([[10, 0, 20, 10]], ignored=(UNIT,)) == [0]


def test_an_image_with_ignored_objects_only() -> None:
    rois = match([boxes(UNIT, FAR)], [target(ignored=(UNIT,))])
    assert rois.labels.tolist() == [-1, 0]
    assert rois.ious.tolist() == [0, 0]  # of objects that are not ignored
    assert not rois.targets.any()


def test_an_object_inside_a_crowd_stays_foreground() -> None:
    crowd = [0.0, 0.0, 100.0, 100.0]
    assert labels_of([UNIT, [0, 0, 10, 8], [50, 50, 60, 60]], (UNIT, 2), ignored=(crowd,)) == [2, 2, -1]


def test_the_larger_iou_decides_between_an_object_and_an_ignored_region() -> None:
    region = [0.0, 4.0, 10.0, 14.0]
    towards_object, towards_region, middle = [0.0, 1.0, 10.0, 11.0], [0.0, 3.0, 10.0, 13.0], [0.0, 2.0, 10.0, 12.0]
    assert labels_of([towards_object, towards_region, middle], (UNIT, 2), ignored=(region,)) == [2, -1, 2]


def test_an_object_that_equals_an_ignored_region_stays_foreground() -> None:
    assert match([boxes()], [target((UNIT, 2), ignored=(UNIT,))]).labels.tolist() == [2]


def test_any_of_several_regions_counts() -> None:
    assert labels_of([UNIT, FAR, [30, 30, 40, 40]], ignored=(FAR, UNIT)) == [-1, -1, 0]


def test_without_area_nothing_is_covered() -> None:
    point = [5.0, 5.0, 5.0, 5.0]
    assert labels_of([FAR], ignored=(point,)) == [0]
    assert labels_of([point], ignored=(FAR,)) == [0]


@given(st.integers(0, 2**32 - 1))
def test_rules_hold_for_random_boxes(seed: int) -> None:
    """Compares each RoI with the definition."""
    rng = torch.Generator().manual_seed(seed)
    truth = random_target(rng, 3, objects=4, ignored=2)
    rois = match([near(truth, 20, rng)], [truth])
    objects, regions = truth["boxes"][:2], truth["boxes"][2:]
    for box, label, iou, deltas in zip(rois.boxes, rois.labels, rois.ious, rois.targets, strict=True):
        with_objects, with_regions = box_iou(box[None], objects)[0], box_iou(box[None], regions)[0]
        assert iou == with_objects.max()
        expected = int(truth["labels"][with_objects.argmax()]) if iou >= 0.5 and iou >= with_regions.max() else 0
        if expected == 0 and any(_share_half(box.tolist(), region) for region in regions.tolist()):
            expected = -1
        assert label == expected
        if expected > 0:
            raw = encode(box[None], objects[with_objects.argmax()][None])[0]
            torch.testing.assert_close(deltas, (raw - torch.tensor(BOX_MEAN)) / torch.tensor(BOX_STD))
        else:
            assert not deltas.any()


@pytest.mark.parametrize("pairs", [1, 7])
def test_boxes_are_matched_in_parts(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits the pairs of boxes in memory; the RoIs are the same."""
    rng = torch.Generator().manual_seed(0)
    truth = random_target(rng, 3, objects=4, ignored=2)
    proposals = near(truth, 20, rng)
    whole = match([proposals], [truth])
    assert set(whole.labels.tolist()) > {-1, 0}
    counts: list[int] = []
    real = module.pairwise_iou
    monkeypatch.setattr(module, "MOST_PAIRS", pairs)
    monkeypatch.setattr(module, "pairwise_iou", lambda a, b: counts.append(len(a) * len(b)) or real(a, b))
    parts = match([proposals], [truth])
    assert max(counts) <= max(pairs, 2)
    for name in ("labels", "targets", "ious"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def _share_half(a: Box, b: Box) -> bool:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared >= 0.5 * min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


# ------------------------------------------------------------------------------------------------------ normalisation


def test_normalisation_of_all_classes_and_per_class() -> None:
    proposals, truth = [boxes([0, 0, 10, 8], [60, 60, 70, 68], UNIT)], [target((UNIT, 1), (FAR, 2))]
    raw = match(proposals, truth, mean=[0] * 4, std=[1] * 4)
    mean = torch.tensor([[0.0] * 4, [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    std = torch.tensor([[1.0] * 4, [2.0] * 4, [0.5, 0.25, 0.5, 0.25]])
    actual = match(proposals, truth, mean=mean, std=std)
    for i, label in enumerate(actual.labels.tolist()):
        torch.testing.assert_close(actual.targets[i], (raw.targets[i] - mean[label]) / std[label])
    actual = match(proposals, truth, mean=mean[1], std=std[2])
    torch.testing.assert_close(actual.targets, (raw.targets - mean[1]) / std[2])


def test_background_targets_are_zero_whatever_the_mean() -> None:
    rois = match([boxes(FAR)], [target(ignored=(UNIT,))], mean=[5.0] * 4, std=[2.0] * 4)
    assert rois.targets.tolist() == [[0.0] * 4]


def _with_targets(labels: list[int], targets: list[Box]) -> RoIs:
    rois = make_rois(labels)
    return RoIs(rois.boxes, rois.images, rois.labels, torch.tensor(targets), rois.ious, 1)


def test_statistics_by_hand() -> None:
    first = _with_targets([1, 1, 0, -1], [[1.0, 0, 0, 0], [3.0, 0, 0, 4.0], [9.0] * 4, [9.0] * 4])
    second = _with_targets([1, 3], [[5.0, 0, 0, 2.0], [7.0, 7.0, 7.0, 7.0]])
    mean, std = target_statistics([first, second], 4)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, torch.tensor([[0.0] * 4, [3.0, 0.0, 0.0, 2.0], [0.0] * 4, [7.0] * 4]))
    spread = math.sqrt(8 / 3)  # of 1, 3, 5 as of 0, 4, 2
    # If no target varies, or there is none, the targets do not change.
    torch.testing.assert_close(std, torch.tensor([[1.0] * 4, [spread, 1.0, 1.0, spread], [1.0] * 4, [1.0] * 4]))


def test_statistics_of_nothing() -> None:
    mean, std = target_statistics([], 3)
    assert torch.equal(mean, torch.zeros(3, 4))
    assert torch.equal(std, torch.ones(3, 4))


def test_normalised_targets_have_mean_0_and_deviation_1() -> None:
    rng = torch.Generator().manual_seed(1)
    truths = [random_target(rng, 2) for _ in range(4)]
    proposals = [near(truth, 60, rng) for truth in truths]
    mean, std = target_statistics([match(proposals, truths, mean=[0] * 4, std=[1] * 4)], 3)
    rois = match(proposals, truths, mean=mean, std=std)
    for label in (1, 2):
        values = rois.targets[rois.labels == label]
        assert len(values) > 5
        torch.testing.assert_close(values.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(values.std(dim=0, correction=0), torch.ones(4), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------ the authors' values

# The number of rows at the start of each recorded image that are its ground truth (overlap 1).
OBJECTS = (2, 1, 0, 1)
# The record says that row 2 of image 3 is of a crowd, but not where the crowd is: any region that it fits better than
# the object, and the other rows do not.
CROWD = from_inclusive(boxes([54, 20, 300, 330]))


def _recorded(**normalisation: Any) -> tuple[list[dict[str, Any]], list[RoIs]]:
    images = reference("labelling_and_targets")["images"]
    actual = []
    for i, (image, n) in enumerate(zip(images, OBJECTS, strict=True)):
        rows = from_inclusive(boxes(*image["boxes"]))
        region = CROWD if i == 3 else boxes()
        truth = {
            "boxes": torch.cat([rows[:n], region]),
            "labels": torch.tensor([*image["max_classes"][:n], *[1] * len(region)], dtype=torch.int64),
            "ignore": torch.arange(n + len(region)) >= n,
        }
        actual.append(match([rows[n:]], [truth], **normalisation))
    return images, actual


@needs_shared
def test_recorded_overlaps_and_labels() -> None:
    images, actual = _recorded()
    for i, (image, rois) in enumerate(zip(images, actual, strict=True)):
        expected = torch.tensor(image["max_overlaps"])
        # The authors' labels are in the order of `row_order`, foreground first.
        order, labels = image["all_rois"]["row_order"], image["all_rois"]["labels"]
        by_row = dict(zip(order, labels, strict=True))
        if i == 3:
            assert expected[2] == -1
            assert by_row[2] == 0  # the release mines the crowd as background; ours must not
            expected[2], by_row[2] = rois.ious[2], -1
        torch.testing.assert_close(rois.ious, expected, rtol=1e-6, atol=1e-6)
        assert rois.labels.tolist() == [by_row[row] for row in range(len(rois))]


@needs_shared
def test_recorded_targets() -> None:
    images, actual = _recorded(mean=[0.0] * 4, std=[1.0] * 4)
    for image, rois in zip(images, actual, strict=True):
        expected = torch.tensor(image["raw_targets_cls_dx_dy_dw_dh"])
        assert rois.labels.clamp(min=0).tolist() == expected[:, 0].tolist()
        torch.testing.assert_close(rois.targets, expected[:, 1:], rtol=1e-5, atol=1e-6)


@needs_shared
def test_recorded_statistics() -> None:
    case = reference("labelling_and_targets")
    mean, std = target_statistics(_recorded(mean=[0.0] * 4, std=[1.0] * 4)[1], case["num_classes"])
    torch.testing.assert_close(mean, torch.tensor(case["means"]), rtol=1e-5, atol=1e-6)
    expected = torch.tensor(case["stds"])
    # The authors' value for a class without a sample is 0, by which one cannot divide: ours is 1.
    assert not expected[0].any()
    torch.testing.assert_close(std, torch.where(expected > 0, expected, 1), rtol=1e-5, atol=1e-6)


@needs_shared
def test_recorded_normalised_targets() -> None:
    raw = _recorded(mean=[0.0] * 4, std=[1.0] * 4)[1]
    mean, std = target_statistics(raw, 4)
    images, actual = _recorded(mean=mean, std=std)
    for image, rois in zip(images, actual, strict=True):
        expected = torch.tensor(image["normalised_targets"])[:, 1:]
        torch.testing.assert_close(rois.targets, expected, rtol=1e-4, atol=1e-5)


@needs_shared
@pytest.mark.parametrize("index", range(3))
def test_edge_cases_of_mmdetection(index: int) -> None:
    """Checks all combinations with and without objects, ignored regions and proposals: every row has a label."""
    record = reference("mmdet_sampler_edge_cases")
    case = record["cases"][index]
    proposals = boxes(*case.get("boxes", record["boxes"]))
    objects = [(box, label) for box, label in zip(case["gt"], case["gt_labels"], strict=True)]
    rois = match([proposals], [target(*objects, ignored=tuple(case["ignore"]))])
    assert len(rois) == len(objects) + len(proposals)
    assert rois.labels[: len(objects)].tolist() == case["gt_labels"]
    assert (
        rois.labels[len(objects) :].tolist()
        == {
            "normal": [1, 0, 0, -1],
            "empty_gt": [0, 0, 0, 0],
            "empty_pred": [],
        }[case["name"]]
    )


def test_host_waits_only_for_the_objects_that_are_ignored() -> None:
    """A GPU counts three masks of the ground truth of an image; the proposals, which are many, make no host wait."""
    one = target((UNIT, 1), (FAR, 2), ignored=([20.0, 20.0, 30.0, 30.0],))
    proposals = boxes(UNIT, FAR, [0, 0, 9, 9])
    assert host_reads(lambda: _match_image(proposals, one, 0.5, True)) == ["aten::index.Tensor"] * 3
