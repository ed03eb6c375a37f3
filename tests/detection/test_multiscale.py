"""An image in several sizes: the size at which a box is scored; one size gives the results of a single scale."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.boxes import from_inclusive
from ohem.data.transforms import resize, scale_factor
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.multiscale import View, levels, nearest, union
from ohem.detection.post_process import BoxScores, PostProcess
from ohem.samplers import AllSampler
from tests.detection.toy_detector import detector, mini_batch
from tests.helpers.make_rois import random_boxes
from tests.helpers.reference import needs_shared, reference

Detections = dict[str, Tensor]


@needs_shared
def test_level_cases() -> None:
    case = reference("image_scale")["level_cases"]
    detections = levels(from_inclusive(torch.tensor(case["boxes"])), case["scales"])
    assert detections.tolist() == case["levels"]


def test_levels_by_hand() -> None:
    """Checks a square of side 112, which has the area at scale 2, and one of 158.4, equally far from two levels."""
    squares = torch.tensor([[0.0, 0.0, side, side] for side in (112, 224, 20, 1000)])
    assert levels(squares, [1.0, 2.0]).tolist() == [1, 0, 1, 0]
    assert levels(squares, [2.0, 1.0]).tolist() == [0, 1, 0, 1]
    assert levels(squares, [1.0, 1.0]).tolist() == [0, 0, 0, 0]
    assert levels(squares[:0], [1.0, 2.0]).tolist() == []


def views(scales: Sequence[float]) -> tuple[list[View], list[list[Tensor]]]:
    """Returns views that return their own number, and the list of the boxes of their calls."""
    calls: list[list[Tensor]] = [[] for _ in scales]

    def view(i: int, scale: float) -> View:
        def score_boxes(boxes: Tensor) -> BoxScores:
            calls[i].append(boxes)
            n = len(boxes)
            return BoxScores(torch.full((n, 2), float(i)), torch.full((n, 2, 4), float(i)))

        return View(score_boxes, scale)

    return [view(i, scale) for i, scale in enumerate(scales)], calls


def test_union_scores_every_box_in_every_view() -> None:
    boxes = random_boxes(3, torch.Generator().manual_seed(0))
    three, calls = views([1.0, 1.5, 2.0])
    assert [score_boxes(boxes).scores[0, 0].item() for score_boxes in union(three)] == [0, 1, 2]
    assert all(torch.equal(a[0], boxes) for a in calls)


def test_nearest_scores_every_box_once_at_its_best_scale() -> None:
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in (200, 100, 220, 90, 10)])
    two, calls = views([1.0, 2.0])
    (score_boxes,) = nearest(two)
    scores, deltas = score_boxes(boxes)
    assert [a[0][:, 2].tolist() for a in calls] == [[200, 220], [100, 90, 10]]
    assert scores[:, 0].tolist() == deltas[:, 1, 3].tolist() == [0, 1, 0, 1, 1]


def resized(image: Tensor, scales: Sequence[float]) -> list[Tensor]:
    return [resize(image, scale) for scale in scales]


@torch.no_grad()
def detections(model: FastRCNN, image: Tensor, scales: Sequence[float], proposals: Tensor) -> Detections:
    height, width = image.shape[1:]
    return model.eval().detect(resized(image, scales), scales, proposals, (height, width))


def same(a: Detections, b: Detections) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("merge", [union, nearest])
@pytest.mark.parametrize("refinement", [None, BoxRefinement()])
def test_one_size_is_the_plain_detector(merge: object, refinement: BoxRefinement | None) -> None:
    images, proposals, _ = mini_batch()
    plain = detector(AllSampler(), refinement=refinement)
    model = detector(AllSampler(), refinement=refinement, merge=merge)
    with torch.no_grad():
        expected = plain.eval()(images[:1], proposals[:1])
    assert isinstance(expected, list)
    assert len(expected[0]["scores"]) > 5
    assert same(detections(model, images[0], [1.0], proposals[0]), expected[0])


def test_boxes_are_in_pixels_of_the_original() -> None:
    """Checks that boxes of the enlarged image are divided by its scale."""
    images, proposals, _ = mini_batch()
    model = detector(AllSampler()).eval()
    with torch.no_grad():
        large = model([resize(images[0], 2.0)], [proposals[0] * 2])
    assert isinstance(large, list)
    once = detections(model, images[0], [2.0], proposals[0])
    assert torch.equal(once["labels"], large[0]["labels"])
    torch.testing.assert_close(once["scores"], large[0]["scores"])
    torch.testing.assert_close(once["boxes"], large[0]["boxes"] / 2)


@pytest.mark.parametrize(
    "refinement", [None, BoxRefinement(voting=False), BoxRefinement(), BoxRefinement(3, first_top=20)]
)
def test_an_image_twice_in_one_size_is_the_image_once(refinement: BoxRefinement | None) -> None:
    """Checks that NMS drops the second of two equal boxes, and that the weight of every vote is doubled."""
    images, proposals, _ = mini_batch()
    model = detector(AllSampler(), refinement=refinement)
    once, twice = (detections(model, images[0], scales, proposals[0]) for scales in ([1.5], [1.5, 1.5]))
    assert torch.equal(once["labels"], twice["labels"])
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-4)


@pytest.mark.parametrize("refinement", [None, BoxRefinement()])
def test_the_order_of_sizes_does_not_matter(refinement: BoxRefinement | None) -> None:
    images, proposals, _ = mini_batch()
    for merge in (union, nearest):
        model = detector(AllSampler(), refinement=refinement, merge=merge)
        there, back = (
            detections(model, images[0], scales, proposals[0]) for scales in ([1.0, 1.5, 2.0], [2.0, 1.5, 1.0])
        )
        assert torch.equal(there["labels"], back["labels"])
        torch.testing.assert_close(there, back, rtol=0, atol=1e-4)


def test_union_has_the_detections_of_all_sizes() -> None:
    """Checks that, without NMS and limits, the union has all detections of both."""
    images, proposals, _ = mini_batch()
    model = detector(AllSampler(), post_process=PostProcess(0.2, 1.0, 10**6))
    small, large, both = (detections(model, images[0], scales, proposals[0]) for scales in ([1.0], [2.0], [1.0, 2.0]))
    joined = torch.cat([small["scores"], large["scores"]]).sort(descending=True).values
    assert torch.equal(both["scores"], joined)


@pytest.mark.parametrize("merge", [union, nearest])
def test_features_are_computed_once_for_a_size(merge: object) -> None:
    images, proposals, _ = mini_batch()
    model = detector(AllSampler(), refinement=BoxRefinement(3, rescore_score=0.0), merge=merge)
    seen: list[int] = []
    hook = model.backbone.features.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    detections(model, images[0], [0.5, 1.0, 1.5], proposals[0])
    hook.remove()
    width = images[0].shape[2]
    assert seen == [round(width * scale) for scale in (0.5, 1.0, 1.5)]


@pytest.mark.parametrize("merge", [union, nearest])
@pytest.mark.parametrize("refinement", [None, BoxRefinement(first_nms_iou=0.95, first_top=5)])
def test_no_proposals(merge: object, refinement: BoxRefinement | None) -> None:
    images, _, _ = mini_batch()
    model = detector(AllSampler(), refinement=refinement, merge=merge)
    assert detections(model, images[0], [1.0, 2.0], torch.zeros(0, 4))["boxes"].shape == (0, 4)


@given(st.integers(20, 500), st.integers(20, 500), st.floats(0.5, 3), st.integers(0, 1000))
def test_the_level_depends_on_the_scaled_area_alone(height: int, width: int, zoom: float, seed: int) -> None:
    """Checks that the same image, stored larger, has the same levels at scales that are as many times smaller."""
    boxes = random_boxes(10, torch.Generator().manual_seed(seed)).double()
    scales = [scale_factor(height, width, short, 10**6) for short in (480, 600, 864)]
    larger = [scale / zoom for scale in scales]
    assert torch.equal(levels(boxes, scales), levels(boxes * zoom, larger))
