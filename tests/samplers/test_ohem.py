"""Online hard example mining, in mini-batches small enough to check by hand."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ohem.losses import weighted
from ohem.samplers import OHEMSampler
from tests.helpers.fake_gpu import host_reads
from tests.helpers.make_rois import make_rois
from tests.helpers.reference import needs_shared, reference

UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def make_losses(*losses: float) -> Callable[[], Tensor]:
    return lambda: torch.tensor(losses)


def test_losses_are_computed_once() -> None:
    calls = []

    def losses() -> Tensor:
        calls.append(1)
        return torch.tensor([1.0, 2.0])

    for sampler in (OHEMSampler(), OHEMSampler(per_image=False)):
        calls.clear()
        sampler(make_rois([0, 0], images=[0, 1], num_images=2), losses)
        assert len(calls) == 1


def test_hardest_per_image_or_of_the_mini_batch() -> None:
    rois = make_rois([0] * 6, images=[0, 0, 0, 1, 1, 1], num_images=2)
    losses = make_losses(9.0, 7.0, 8.0, 1.0, 3.0, 2.0)
    assert OHEMSampler(2)(rois, losses).tolist() == [0, 2, 4, 5]
    assert OHEMSampler(2, per_image=False)(rois, losses).tolist() == [0, 2, 1, 4]
    assert OHEMSampler(1, per_image=False)(rois, losses).tolist() == [0, 2]


def test_images_need_not_be_in_order() -> None:
    rois = make_rois([0] * 4, images=[1, 0, 1, 0], num_images=2)
    assert OHEMSampler(1)(rois, make_losses(1.0, 2.0, 3.0, 4.0)).tolist() == [3, 2]


def test_suppression_in_the_image_or_in_the_label() -> None:
    rois = make_rois([0, 0, 1, 2], boxes=[UNIT] * 4)
    losses = make_losses(1.0, 4.0, 2.0, 3.0)
    assert OHEMSampler()(rois, losses).tolist() == [1]
    assert OHEMSampler(suppress="label")(rois, losses).tolist() == [1, 3, 2]
    assert OHEMSampler(nms_iou=None)(rois, losses).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("suppress", ["image", "label"])
@pytest.mark.parametrize("per_image", [True, False])
def test_rois_of_other_images_are_not_suppressed(suppress: str, per_image: bool) -> None:
    """Covers groups image + N x label that would collide without the factor N."""
    labels, images = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]
    rois = make_rois(labels, boxes=[UNIT] * 6, images=images, num_images=2)
    sampler = OHEMSampler(64, per_image=per_image, suppress=suppress)  # type: ignore[arg-type]
    chosen = sampler(rois, make_losses(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)).tolist()
    assert sorted(chosen) == ([0, 1] if suppress == "image" else [0, 1, 2, 3, 4, 5])


def test_inclusive_counts_the_last_pixel() -> None:
    """The IoU is 56 / 81 = 0.69 without it and 9 x 8 / 100 = 0.72 with it, on both sides of 0.7."""
    rois = make_rois([0, 0], boxes=[[0, 0, 9, 9], [1, 1, 8, 9]])
    losses = make_losses(2.0, 1.0)
    assert OHEMSampler()(rois, losses).tolist() == [0, 1]
    assert OHEMSampler(inclusive=True)(rois, losses).tolist() == [0]


def test_ignored_rois_are_not_mined_and_do_not_suppress() -> None:
    rois = make_rois([-1, 0, -1, 1], boxes=[UNIT, UNIT, FAR, FAR])
    for per_image in (True, False):
        assert OHEMSampler(per_image=per_image)(rois, make_losses(9.0, 1.0, 9.0, 2.0)).tolist() == [3, 1]


def test_share_of_foreground_and_iou_are_not_restricted() -> None:
    rois = make_rois([1, 1, 1, 0, 0], ious=[0.9, 0.8, 0.7, 0.0, 0.3])
    assert OHEMSampler(3)(rois, make_losses(3.0, 5.0, 4.0, 1.0, 2.0)).tolist() == [1, 2, 0]
    assert OHEMSampler(3)(rois, make_losses(1.0, 1.5, 0.5, 4.0, 3.0)).tolist() == [3, 4, 1]


def test_background_is_mined_in_images_without_an_object() -> None:
    rois = make_rois([0] * 5, images=[0, 0, 0, 1, 1], num_images=2)
    assert OHEMSampler(2)(rois, make_losses(0.1, 0.3, 0.2, 0.5, 0.4)).tolist() == [1, 2, 3, 4]


def test_batch_is_smaller_if_few_rois_survive() -> None:
    rois = make_rois([0, 0, 0], boxes=[UNIT, UNIT, FAR])
    assert OHEMSampler(64)(rois, make_losses(1.0, 2.0, 3.0)).tolist() == [2, 1]


def test_nan_is_reported_and_mined_last() -> None:
    rois = make_rois([0, 0, 0, 1])
    for sampler in (OHEMSampler(2), OHEMSampler(2, per_image=False)):
        with pytest.warns(RuntimeWarning, match="2 of 4 RoI losses are NaN"):
            assert sampler(rois, make_losses(math.nan, 1.0, math.nan, 2.0)).tolist() == [3, 1]
    with pytest.warns(RuntimeWarning):
        assert OHEMSampler(3)(rois, make_losses(math.nan, 1.0, math.nan, 2.0)).tolist() == [3, 1, 0]


def test_survivors_are_counted_before_the_batch_size_applies() -> None:
    rois = make_rois([0, 0, 1, 0, -1], boxes=[UNIT, UNIT, UNIT, FAR, FAR], images=[0, 0, 0, 0, 0])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert OHEMSampler(1).survivors(rois, losses) == 2
    assert OHEMSampler(1, suppress="label").survivors(rois, losses) == 3
    assert OHEMSampler(1, nms_iou=None).survivors(rois, losses) == 4


def test_foreground_and_background_mined_separately() -> None:
    rois = make_rois([1, 1, 1, 0, 0, 0, 0, 0])
    losses = make_losses(9.0, 8.0, 7.0, 1.0, 5.0, 2.0, 4.0, 3.0)
    assert OHEMSampler(4, fg_fraction=0.25)(rois, losses).tolist() == [0, 4, 6, 7]
    assert OHEMSampler(4, fg_fraction=0.5)(rois, losses).tolist() == [0, 1, 4, 6]
    assert OHEMSampler(4)(rois, losses).tolist() == [0, 1, 2, 4]


def test_separate_background_fills_the_batch_and_is_not_suppressed_by_foreground() -> None:
    rois = make_rois([1, 0, 0, -1], boxes=[UNIT, UNIT, FAR, FAR])
    sampler = OHEMSampler(4, fg_fraction=0.5)
    assert sampler(rois, make_losses(9.0, 1.0, 2.0, 9.0)).tolist() == [0, 2, 1]
    assert sampler.survivors(rois, torch.tensor([9.0, 1.0, 2.0, 9.0])) == 3


def test_separate_mining_over_the_mini_batch() -> None:
    rois = make_rois([1, 0, 0, 1, 0, 0], images=[0, 0, 0, 1, 1, 1], num_images=2)
    sampler = OHEMSampler(2, per_image=False, fg_fraction=0.25)
    assert sampler(rois, make_losses(1.0, 5.0, 6.0, 2.0, 7.0, 0.5)).tolist() == [3, 4, 2, 1]


def test_host_waits_once_per_image_and_once_for_nan() -> None:
    """It also waits for the number of RoIs per image, with a `tolist` that is not counted here."""
    boxes = torch.rand(600, 4, generator=torch.Generator().manual_seed(0)) * 50
    boxes[:, 2:] += boxes[:, :2] + 1
    rois = make_rois([0, 1, -1] * 200, boxes=boxes.tolist(), images=[0, 0, 0, 1, 1, 1] * 100, num_images=2)
    losses = boxes[:, 0].clone()
    is_nan, nms = "aten::_local_scalar_dense", "torchvision::nms"
    assert host_reads(lambda: OHEMSampler(32)(rois, lambda: losses)) == [nms, nms, is_nan]
    assert host_reads(lambda: OHEMSampler.rfcn(32)(rois, lambda: losses)) == [is_nan]


def test_defaults_are_those_of_the_paper() -> None:
    assert OHEMSampler() == OHEMSampler(64, 0.7, True, "image", False, None, 1.0, 1.0, None, 0)


def test_presets_are_those_of_their_projects() -> None:
    assert OHEMSampler.paper() == OHEMSampler()
    assert OHEMSampler.release(32) == OHEMSampler(32, 0.7, per_image=False, suppress="label", inclusive=True)
    assert OHEMSampler.tensorflow() == OHEMSampler()
    assert OHEMSampler.rfcn() == OHEMSampler(128, nms_iou=None)


def _tensorflow_cases() -> list[dict[str, Any]]:
    """Returns the cases of TensorFlow's own test, one for every ratio or minimum that a case lists."""
    cases = []
    for case in reference("tf_hard_example_miner")["cases"]:
        ratio, minimum = case.get("max_negatives_per_positive"), case.get("min_negatives_per_image", 0)
        for i, (loc, classifier) in enumerate(
            zip(*(_as_list(case[k]) for k in ("expect_loc", "expect_cls")), strict=True)
        ):
            varied = {"ratio": _as_list(ratio)[i] if isinstance(ratio, list) else ratio}
            varied["minimum"] = _as_list(minimum)[i] if isinstance(minimum, list) else minimum
            cases.append(case | varied | {"expect_loc": loc, "expect_cls": classifier})
    return cases


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@needs_shared
def test_cases_of_tensorflow() -> None:
    """Compares the sums of the losses of the chosen RoIs over the images."""
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
            cls_weight=float(kind in ("cls", "both")),
            box_weight=float(kind in ("loc", "both")),
            negatives_per_positive=case["ratio"],
            min_negatives=case["minimum"],
        )
        chosen = sampler(rois, partial(weighted, parts))
        assert [part[chosen].sum().item() for part in parts] == [case["expect_cls"], case["expect_loc"]], case


def test_mmdetection_ranks_by_classification_loss_and_separately() -> None:
    """RoI 1 has the higher sum of losses, RoI 0 the higher classification loss."""
    parts = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 9.0, 0.0, 0.0])
    rois = make_rois([1, 1, 0, 0])
    sampler = OHEMSampler.mmdetection(2, fg_fraction=0.5)
    assert sampler(rois, partial(weighted, parts)).tolist() == [0, 3]
    assert OHEMSampler(2, nms_iou=None)(rois, partial(weighted, parts)).tolist() == [1, 3]
