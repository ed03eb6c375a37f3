"""Online hard example mining, by hand-countable mini-batches."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ohem.losses import weighted
from ohem.samplers import OHEMSampler
from tests.host_reads import host_reads
from tests.make_rois import make_rois
from tests.shared import needs_shared, reference

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def given(*losses: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(losses)


def test_the_losses_are_computed_once() -> None:
    calls = []

    def losses() -> Tensor:
        calls.append(1)
        return torch.tensor([1.0, 2.0])

    for sampler in (OHEMSampler(), OHEMSampler(per_image=False)):
        calls.clear()
        sampler(make_rois([0, 0], images=[0, 1], num_images=2), losses)
        assert len(calls) == 1


def test_the_hardest_of_each_image_or_of_all() -> None:
    rois = make_rois([0] * 6, images=[0, 0, 0, 1, 1, 1], num_images=2)
    losses = given(9.0, 7.0, 8.0, 1.0, 3.0, 2.0)
    assert OHEMSampler(2)(rois, losses).tolist() == [0, 2, 4, 5]
    assert OHEMSampler(2, per_image=False)(rois, losses).tolist() == [0, 2, 1, 4]
    assert OHEMSampler(1, per_image=False)(rois, losses).tolist() == [0, 2]


def test_images_need_not_be_in_order() -> None:
    rois = make_rois([0] * 4, images=[1, 0, 1, 0], num_images=2)
    assert OHEMSampler(1)(rois, given(1.0, 2.0, 3.0, 4.0)).tolist() == [3, 2]


def test_suppression_over_the_image_or_within_the_label() -> None:
    rois = make_rois([0, 0, 1, 2], boxes=[UNIT] * 4)
    losses = given(1.0, 4.0, 2.0, 3.0)
    assert OHEMSampler()(rois, losses).tolist() == [1]
    assert OHEMSampler(suppress="label")(rois, losses).tolist() == [1, 3, 2]
    assert OHEMSampler(nms_iou=None)(rois, losses).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("suppress", ["image", "label"])
@pytest.mark.parametrize("per_image", [True, False])
def test_images_never_suppress_each_other(suppress: str, per_image: bool) -> None:
    """Not even where image + N x label could be mistaken for another's."""
    labels, images = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]
    rois = make_rois(labels, boxes=[UNIT] * 6, images=images, num_images=2)
    sampler = OHEMSampler(64, per_image=per_image, suppress=suppress)  # type: ignore[arg-type]
    chosen = sampler(rois, given(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)).tolist()
    assert sorted(chosen) == ([0, 1] if suppress == "image" else [0, 1, 2, 3, 4, 5])


def test_the_last_pixel_counts_on_request() -> None:
    """IoU 56 / 81 = 0.69 without it and 9 x 8 / 100 = 0.72 with it: a decision at 0.7 turns."""
    rois = make_rois([0, 0], boxes=[[0, 0, 9, 9], [1, 1, 8, 9]])
    losses = given(2.0, 1.0)
    assert OHEMSampler()(rois, losses).tolist() == [0, 1]
    assert OHEMSampler(inclusive=True)(rois, losses).tolist() == [0]


def test_ignored_rois_are_not_mined_nor_do_they_suppress() -> None:
    """Whatever their loss, and whichever way the hardest are counted."""
    rois = make_rois([-1, 0, -1, 1], boxes=[UNIT, UNIT, FAR, FAR])
    for per_image in (True, False):
        assert OHEMSampler(per_image=per_image)(rois, given(9.0, 1.0, 9.0, 2.0)).tolist() == [3, 1]


def test_there_is_no_share_of_foreground_or_lower_bound_of_iou() -> None:
    rois = make_rois([1, 1, 1, 0, 0], ious=[0.9, 0.8, 0.7, 0.0, 0.3])
    assert OHEMSampler(3)(rois, given(3.0, 5.0, 4.0, 1.0, 2.0)).tolist() == [1, 2, 0]
    assert OHEMSampler(3)(rois, given(1.0, 1.5, 0.5, 4.0, 3.0)).tolist() == [3, 4, 1]


def test_background_is_mined_where_there_is_no_object() -> None:
    rois = make_rois([0] * 5, images=[0, 0, 0, 1, 1], num_images=2)
    assert OHEMSampler(2)(rois, given(0.1, 0.3, 0.2, 0.5, 0.4)).tolist() == [1, 2, 3, 4]


def test_fewer_survivors_than_the_batch_are_not_filled_up() -> None:
    rois = make_rois([0, 0, 0], boxes=[UNIT, UNIT, FAR])
    assert OHEMSampler(64)(rois, given(1.0, 2.0, 3.0)).tolist() == [2, 1]


def test_nan_is_told_and_mined_last() -> None:
    rois = make_rois([0, 0, 0, 1])
    for sampler in (OHEMSampler(2), OHEMSampler(2, per_image=False)):
        with pytest.warns(RuntimeWarning, match="2 of 4 RoI losses are NaN"):
            assert sampler(rois, given(math.nan, 1.0, math.nan, 2.0)).tolist() == [3, 1]
    with pytest.warns(RuntimeWarning):
        assert OHEMSampler(3)(rois, given(math.nan, 1.0, math.nan, 2.0)).tolist() == [3, 1, 0]


def test_survivors_are_counted_before_the_batch_is_cut() -> None:
    rois = make_rois([0, 0, 1, 0, -1], boxes=[UNIT, UNIT, UNIT, FAR, FAR], images=[0, 0, 0, 0, 0])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert OHEMSampler(1).survivors(rois, losses) == 2
    assert OHEMSampler(1, suppress="label").survivors(rois, losses) == 3
    assert OHEMSampler(1, nms_iou=None).survivors(rois, losses) == 4


def test_foreground_and_background_mined_apart() -> None:
    rois = make_rois([1, 1, 1, 0, 0, 0, 0, 0])
    losses = given(9.0, 8.0, 7.0, 1.0, 5.0, 2.0, 4.0, 3.0)
    assert OHEMSampler(4, fg_fraction=0.25)(rois, losses).tolist() == [0, 4, 6, 7]
    assert OHEMSampler(4, fg_fraction=0.5)(rois, losses).tolist() == [0, 1, 4, 6]
    assert OHEMSampler(4)(rois, losses).tolist() == [0, 1, 2, 4]


def test_apart_background_fills_what_foreground_leaves_and_is_not_suppressed_by_it() -> None:
    rois = make_rois([1, 0, 0, -1], boxes=[UNIT, UNIT, FAR, FAR])
    sampler = OHEMSampler(4, fg_fraction=0.5)
    assert sampler(rois, given(9.0, 1.0, 2.0, 9.0)).tolist() == [0, 2, 1]
    assert sampler.survivors(rois, torch.tensor([9.0, 1.0, 2.0, 9.0])) == 3


def test_apart_over_the_mini_batch() -> None:
    rois = make_rois([1, 0, 0, 1, 0, 0], images=[0, 0, 0, 1, 1, 1], num_images=2)
    sampler = OHEMSampler(2, per_image=False, fg_fraction=0.25)
    assert sampler(rois, given(1.0, 5.0, 6.0, 2.0, 7.0, 0.5)).tolist() == [3, 4, 2, 1]


def test_the_host_waits_once_an_image_and_for_nan() -> None:
    """Besides, for the number of RoIs of each image, a `tolist` that is not counted."""
    boxes = torch.rand(600, 4, generator=torch.Generator().manual_seed(0)) * 50
    boxes[:, 2:] += boxes[:, :2] + 1
    rois = make_rois([0, 1, -1] * 200, boxes=boxes.tolist(), images=[0, 0, 0, 1, 1, 1] * 100, num_images=2)
    losses = boxes[:, 0].clone()
    is_nan, nms = "aten::_local_scalar_dense", "torchvision::nms"
    assert host_reads(lambda: OHEMSampler(32)(rois, lambda: losses)) == [is_nan, nms, nms]
    assert host_reads(lambda: OHEMSampler.rfcn(32)(rois, lambda: losses)) == [is_nan]


def test_defaults_are_those_of_the_paper() -> None:
    assert OHEMSampler() == OHEMSampler(64, 0.7, True, "image", False, None, 1.0, 1.0, None, 0)


def test_presets_are_what_their_projects_do() -> None:
    assert OHEMSampler.paper() == OHEMSampler()
    assert OHEMSampler.release(32) == OHEMSampler(32, 0.7, per_image=False, suppress="label", inclusive=True)
    assert OHEMSampler.tensorflow() == OHEMSampler()
    assert OHEMSampler.rfcn() == OHEMSampler(128, nms_iou=None)


def _tensorflow_cases() -> list[dict[str, Any]]:
    """Of TensorFlow's own test, one for each of the ratios, or of the minima, that a case lists."""
    cases = []
    for case in reference("tf_hard_example_miner")["cases"]:
        ratio, least = case.get("max_negatives_per_positive"), case.get("min_negatives_per_image", 0)
        for i, (loc, classifier) in enumerate(
            zip(*(_listed(case[k]) for k in ("expect_loc", "expect_cls")), strict=True)
        ):
            varied = {"ratio": _listed(ratio)[i] if isinstance(ratio, list) else ratio}
            varied["least"] = _listed(least)[i] if isinstance(least, list) else least
            cases.append(case | varied | {"expect_loc": loc, "expect_cls": classifier})
    return cases


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@needs_shared
def test_tensorflow_s_own_cases() -> None:
    """Sums of the losses that are left, over the images."""
    cases = _tensorflow_cases()
    assert len(cases) == 3 + 5 + 6
    for case in cases:
        images = len(case["cls_losses"])
        anchors = torch.tensor(case["boxes"])[:, [1, 0, 3, 2]].float()
        labels = [int(match >= 0) for match in case.get("match", [0] * len(anchors))]
        rois = make_rois(
            labels * images,
            boxes=anchors.repeat(images, 1).tolist(),
            images=[i for i in range(images) for _ in labels],
            num_images=images,
        )
        parts = tuple(torch.tensor(case[k]).flatten().float() for k in ("cls_losses", "location_losses"))
        kind = case["loss_type"]
        sampler = OHEMSampler(
            case["num"] or len(anchors),
            case["iou"],
            classifier=float(kind in ("cls", "both")),
            box_reg=float(kind in ("loc", "both")),
            negatives_per_positive=case["ratio"],
            min_negatives=case["least"],
        )
        chosen = sampler(rois, partial(weighted, parts))
        assert [part[chosen].sum().item() for part in parts] == [case["expect_cls"], case["expect_loc"]], case


def test_mmdetection_ranks_by_the_class_alone_and_apart() -> None:
    """RoI 1 has the higher sum, RoI 0 the higher class loss."""
    parts = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 9.0, 0.0, 0.0])
    rois = make_rois([1, 1, 0, 0])
    sampler = OHEMSampler.mmdetection(2, fg_fraction=0.5)
    assert sampler(rois, partial(weighted, parts)).tolist() == [0, 3]
    assert OHEMSampler(2, nms_iou=None)(rois, partial(weighted, parts)).tolist() == [1, 3]
