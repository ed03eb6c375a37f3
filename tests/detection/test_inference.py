"""From scores and regressions to detections, by hand."""

import math

import pytest
import torch
from torch import Tensor

from ohem.detection.inference import PostProcess

SIZE = (90, 120)
UNIT = [0.0, 0.0, 10.0, 10.0]
NEARBY = [0.0, 0.0, 10.0, 9.0]  # IoU 0.9 with the first
FAR = [50.0, 50.0, 60.0, 60.0]


def detect(
    scores: list[list[float]], boxes: list[list[float]], deltas: Tensor | None = None, post: PostProcess | None = None
) -> dict[str, list[object]]:
    """Rows of probabilities, background first; no regression unless given."""
    p, k1 = len(boxes), len(scores[0]) if scores else 3
    found = (post or PostProcess())(
        torch.tensor(scores).reshape(p, k1),
        torch.zeros(p, k1, 4) if deltas is None else deltas,
        torch.tensor(boxes).reshape(p, 4),
        SIZE,
    )
    return {name: value.tolist() for name, value in found.items()}


def test_highest_score_first_over_all_classes() -> None:
    found = detect([[0.5, 0.2, 0.3], [0.1, 0.5, 0.4]], [UNIT, FAR])
    assert found["boxes"] == [FAR, FAR, UNIT, UNIT]
    assert found["labels"] == [1, 2, 2, 1]
    assert found["scores"] == pytest.approx([0.5, 0.4, 0.3, 0.2])


def test_types() -> None:
    found = PostProcess()(torch.full((2, 3), 1 / 3), torch.zeros(2, 3, 4), torch.tensor([UNIT, FAR]), SIZE)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert found["labels"].dtype == torch.int64
    assert found["boxes"].shape == (4, 4)


def test_background_is_no_detection() -> None:
    assert detect([[1.0, 0.0, 0.0]], [UNIT])["labels"] == []


def test_scores_below_the_threshold_are_dropped() -> None:
    scores = [[0.0, 0.25, 0.75], [0.5, 0.125, 0.375]]
    assert detect(scores, [UNIT, FAR], post=PostProcess(score=0.25))["scores"] == [0.75, 0.375, 0.25]
    assert detect([[0.9985, 0.0005, 0.001]], [UNIT])["labels"] == [2]  # 0.001 unless given


def test_nan_is_no_detection() -> None:
    assert detect([[math.nan] * 3, [0.5, 0.5, 0.0]], [UNIT, FAR])["boxes"] == [FAR]


def test_suppression_is_within_a_class() -> None:
    assert detect([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0]], [UNIT, NEARBY])["boxes"] == [NEARBY]
    assert detect([[0.5, 0.5, 0.0], [0.4, 0.0, 0.6]], [UNIT, NEARBY])["boxes"] == [NEARBY, UNIT]


def test_suppression_is_above_0_3_unless_given() -> None:
    lower, higher = [0.0, 0.0, 10.0, 2.9], [0.0, 0.0, 10.0, 3.1]
    scores = [[0.1, 0.9], [0.5, 0.5]]
    assert len(detect(scores, [UNIT, lower])["boxes"]) == 2
    assert len(detect(scores, [UNIT, higher])["boxes"]) == 1
    assert len(detect(scores, [UNIT, higher], post=PostProcess(nms_iou=0.5))["boxes"]) == 2


def test_suppression_is_of_regressed_boxes() -> None:
    """Two proposals far apart that are regressed to the same place."""
    deltas = torch.zeros(2, 2, 4)
    deltas[1, 1, :2] = -5  # five widths of 10 back from (50, 50)
    found = detect([[0.1, 0.9], [0.5, 0.5]], [UNIT, FAR], deltas)
    assert found["boxes"] == [UNIT]


def test_each_class_has_its_own_regression() -> None:
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1, 0], deltas[0, 2, 1] = 1.0, 2.0
    deltas[0, 0] = 9.0
    found = detect([[0.0, 0.6, 0.4]], [UNIT], deltas)
    assert found["boxes"] == [[10.0, 0.0, 20.0, 10.0], [0.0, 20.0, 10.0, 30.0]]


def test_boxes_are_clipped_to_the_image() -> None:
    found = detect([[0.0, 1.0]], [[-5.0, 80.0, 200.0, 100.0]])
    assert found["boxes"] == [[0.0, 80.0, 120.0, 90.0]]


def test_at_most_so_many() -> None:
    boxes = [[10.0 * i, 0.0, 10.0 * i + 9, 9.0] for i in range(5)]
    scores = [[1 - s, s] for s in (0.1, 0.5, 0.3, 0.2, 0.4)]
    found = detect(scores, boxes, post=PostProcess(max_detections=3))
    assert found["scores"] == pytest.approx([0.5, 0.4, 0.3])
    assert PostProcess().max_detections == 300


def test_boxes_without_area_are_dropped_and_take_no_place() -> None:
    outside = [200.0, 0.0, 210.0, 10.0]
    found = detect([[0.1, 0.9], [0.5, 0.5]], [outside, UNIT], post=PostProcess(max_detections=1))
    assert found["boxes"] == [UNIT]


def test_no_proposals() -> None:
    found = detect([], [])
    assert found == {"boxes": [], "labels": [], "scores": []}
