"""Average precision: cases by hand, comparison with the authors' functions and with a plain loop."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ohem.metrics.voc import VOCResult, average_precision, evaluate
from tests.helpers.reference import needs_shared, reference

METRICS = ("voc07", "voc10")
BOX = [10.0, 10.0, 20.0, 20.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def target(boxes: list, labels: list[int] | None = None, ignore: list[bool] | None = None) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
        "ignore": torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
    }


def prediction(boxes: list, scores: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
    }


def one_image(boxes: list, scores: list[float], truth: dict[str, torch.Tensor], **options: Any) -> VOCResult:
    return evaluate([prediction(boxes, scores)], [truth], classes=["cat"], **options)


@needs_shared
def test_average_precision_equals_the_authors() -> None:
    for case in reference("voc_ap"):
        assert average_precision(case["rec"], case["prec"], "voc07") == pytest.approx(case["ap07"], abs=1e-12)
        assert average_precision(case["rec"], case["prec"], "voc10") == pytest.approx(case["ap_area"], abs=1e-12)


@needs_shared
def test_average_precision_equals_chainercv() -> None:
    case = reference("chainercv_voc_ap")
    checked = 0
    for precision, recall, area, ap07 in zip(case["prec"], case["rec"], case["ap_area"], case["ap07"], strict=True):
        if precision is None:  # a class without ground truth: see test_class_without_ground_truth
            continue
        precision = [float("nan") if value is None else value for value in precision]
        assert average_precision(recall, precision, "voc10") == pytest.approx(area)
        assert average_precision(recall, precision, "voc07") == pytest.approx(ap07)
        checked += 1
    assert checked == 2


@needs_shared
@pytest.mark.parametrize(("metric", "key"), [("voc07", "ap07"), ("voc10", "ap_area")])
def test_evaluate_equals_the_authors(metric: Any, key: str) -> None:
    case = reference("voc_eval_small")
    end = np.array([0, 0, 1, 1])  # their boxes include the last pixel
    predictions, targets = [], []
    for image, truth in case["gt"].items():
        rows = [(score, box) for name, score, *box in case["dets_id_score_box"] if name == image]
        boxes = (np.array([box for _, box in rows]).reshape(-1, 4) + end).tolist()
        predictions.append(prediction(boxes, [score for score, _ in rows]))
        true_boxes = (np.array(truth["bbox"]).reshape(-1, 4) + end).tolist()
        targets.append(target(true_boxes, ignore=[bool(flag) for flag in truth["difficult"]]))
    result = evaluate(predictions, targets, case["iou_thresh"], metric, classes=["cat"])
    np.testing.assert_allclose(result.recall["cat"], case["rec"])
    np.testing.assert_allclose(result.precision["cat"], case["prec"])
    assert result.ap["cat"] == pytest.approx(100 * case[key])
    assert result.map == result.ap["cat"]
    assert result.npos == {"cat": 3}


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_and_useless_detections(metric: Any) -> None:
    assert one_image([BOX], [0.9], target([BOX]), metric=metric).map == pytest.approx(100)
    assert one_image([FAR], [0.9], target([BOX]), metric=metric).map == 0
    assert one_image([], [], target([BOX]), metric=metric).map == 0


def test_iou_must_exceed_the_threshold() -> None:
    half = [10.0, 10.0, 20.0, 15.0]
    assert one_image([half], [0.9], target([BOX])).map == 0
    assert one_image([half], [0.9], target([BOX]), iou=0.499).map == pytest.approx(100)


def test_second_detection_of_a_box_is_a_false_positive() -> None:
    result = one_image([BOX, BOX], [0.5, 0.9], target([BOX]))
    assert result.precision["cat"].tolist() == [1.0, 0.5]
    # The second detection is compared only with the box that it overlaps most, and not with the free one.
    near = [10.0, 10.0, 20.0, 18.0]
    assert one_image([BOX, BOX], [0.5, 0.9], target([BOX, near])).recall["cat"].tolist() == [0.5, 0.5]


def test_ignored_boxes_are_neither_true_nor_false_positives() -> None:
    truth = target([BOX, FAR], ignore=[True, False])
    result = one_image([BOX, BOX, FAR], [0.9, 0.8, 0.7], truth)
    assert result.npos == {"cat": 1}
    assert result.recall["cat"].tolist() == [0, 0, 1]
    assert result.precision["cat"].tolist() == [0, 0, 1]
    assert result.map == pytest.approx(100)
    without = one_image([BOX, BOX, FAR], [0.9, 0.8, 0.7], {name: truth[name] for name in ("boxes", "labels")})
    assert without.npos == {"cat": 2}


def test_equal_scores_keep_their_order() -> None:
    right, wrong = prediction([BOX], [0.5]), prediction([FAR], [0.5])
    truths = [target([BOX]), target([BOX])]
    first = evaluate([right, wrong], truths, classes=["cat"]).precision["cat"]
    last = evaluate([wrong, right], truths, classes=["cat"]).precision["cat"]
    assert first.tolist() == [1.0, 0.5]
    assert last.tolist() == [0.0, 0.5]


def test_classes_are_evaluated_separately() -> None:
    result = evaluate(
        [prediction([BOX, BOX], [0.9, 0.8], [1, 2])],
        [target([BOX, FAR], [2, 1])],
        metric="voc10",
        classes=["cat", "dog"],
    )
    assert result.ap == {"cat": 0.0, "dog": pytest.approx(100)}
    assert result.map == pytest.approx(50)


def test_class_without_ground_truth() -> None:
    """Checks that it has no AP and does not count in the mean, detected or not, also if all its boxes are ignored."""
    truth = target([BOX, FAR], [1, 3], [False, True])
    result = evaluate([prediction([BOX, FAR], [0.9, 0.8], [1, 2])], [truth], classes=["cat", "dog", "emu"])
    assert result.map == pytest.approx(100)
    assert np.isnan([result.ap["dog"], result.ap["emu"]]).all()
    assert result.npos == {"cat": 1, "dog": 0, "emu": 0}
    assert np.isnan(result.recall["dog"]).all()
    assert result.precision["dog"].tolist() == [0]


def test_no_ground_truth() -> None:
    for result in (evaluate([], [], classes=["cat"]), one_image([BOX], [0.9], target([]))):
        assert np.isnan(result.map)
        assert np.isnan(result.ap["cat"])
    assert evaluate([], [], classes=["cat"]).images == 0
    assert one_image([], [], target([BOX])).images == 1


def test_degenerate_detections_are_false_positives() -> None:
    inverted = [20.0, 20.0, 10.0, 10.0]
    point = [15.0, 15.0, 15.0, 15.0]
    result = one_image([inverted, point], [0.9, 0.8], target([BOX, point]))
    assert result.recall["cat"].tolist() == [0, 0]


def test_bfloat16_generators_and_gradients() -> None:
    detections = prediction([BOX], [0.5])
    detections["scores"] = detections["scores"].to(torch.bfloat16).requires_grad_()
    assert evaluate(iter([detections]), iter([target([BOX])]), classes=["cat"]).map == pytest.approx(100)


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([prediction([BOX], [0.9])], [], "more predictions than targets, of which there are 0"),
        ([], [target([BOX])], "more targets than predictions, of which there are 0"),
        ([prediction([BOX], [0.9, 0.8])], [target([BOX])], "prediction of image 0 has 1 boxes and 2 scores"),
        ([prediction([BOX], [0.9], [2])], [target([BOX])], r"prediction of image 0 has a label outside 1\.\.1"),
        ([prediction([BOX], [0.9])], [target([BOX], [3])], r"target of image 0 has a label outside 1\.\.1"),
        ([prediction([BOX], [float("nan")])], [target([BOX])], "NaN among its scores"),
    ],
)
def test_inconsistent_input_is_refused(predictions: list, targets: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(predictions, targets, classes=["cat"])


def test_unknown_metric_is_refused() -> None:
    bad: Any = "voc12"
    with pytest.raises(ValueError, match='metric must be "voc07" or "voc10"'):
        one_image([BOX], [0.9], target([BOX]), metric=bad)


def devkit(predictions: list, targets: list, label: int, iou: float) -> tuple[list[float], list[float]]:
    """Computes recall and precision as the devkit does, one detection at a time."""
    rows = [
        (float(score), index, box)
        for index, p in enumerate(predictions)
        for box, score, own_label in zip(p["boxes"].tolist(), p["scores"], p["labels"], strict=True)
        if own_label == label
    ]
    npos = sum(int(((t["labels"] == label) & ~t["ignore"]).sum()) for t in targets)
    taken, true, false, recall, precision = set(), 0, 0, [], []
    for _, index, box in sorted(rows, key=lambda row: -row[0]):
        best, position = -1.0, -1
        for number, other in enumerate(targets[index]["boxes"].tolist()):
            if targets[index]["labels"][number] != label:
                continue
            w = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
            h = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
            area = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
            overlap = w * h / (area - w * h)
            if overlap > best:
                best, position = overlap, number
        if best > iou and not targets[index]["ignore"][position]:
            true, false = (true + 1, false) if (index, position) not in taken else (true, false + 1)
            taken.add((index, position))
        elif best <= iou:
            false += 1
        recall.append(true / npos if npos else float("nan"))
        precision.append(true / max(true + false, 1))
    return recall, precision


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]))
def test_equals_a_plain_loop(seed: int, iou: float) -> None:
    random = np.random.default_rng(seed)

    def boxes(count: int) -> list:
        corners = random.integers(0, 6, (count, 2))
        return np.hstack([corners, corners + random.integers(1, 6, (count, 2))]).tolist()

    predictions, targets = [], []
    for _ in range(random.integers(1, 4)):
        detections, objects = random.integers(0, 12), random.integers(0, 5)
        scores = (random.integers(0, 6, detections) / 5).tolist()
        predictions.append(prediction(boxes(detections), scores, random.integers(1, 3, detections).tolist()))
        labels, ignore = random.integers(1, 3, objects).tolist(), (random.random(objects) < 0.3).tolist()
        targets.append(target(boxes(objects), labels, ignore))
    result = evaluate(predictions, targets, iou, classes=["cat", "dog"])
    for label, name in enumerate(["cat", "dog"], start=1):
        recall, precision = devkit(predictions, targets, label, iou)
        np.testing.assert_array_equal(result.recall[name], recall)
        np.testing.assert_array_equal(result.precision[name], precision)


def test_voc2007_test_takes_seconds() -> None:
    """Evaluates a tenth of its 5000 images, with 100 detections per image and 20 classes."""
    random = np.random.default_rng(0)
    corners = random.random((100, 2)) * 400
    boxes, labels = np.hstack([corners, corners + 60]), np.arange(100) % 20 + 1
    detections = {"boxes": boxes, "scores": random.random(100), "labels": labels}
    truth = {"boxes": boxes[:10], "labels": labels[:10], "ignore": np.zeros(10, dtype=bool)}
    start = time.perf_counter()
    evaluate([detections] * 500, [truth] * 500, classes=[str(k) for k in range(20)])
    assert time.perf_counter() - start < 3


GOOD = {"boxes": np.zeros((1, 4)), "labels": np.ones(1), "scores": np.ones(1)}


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({}, {"iou": 2}, "iou must be between 0 and 1"),
        ({}, {"iou": float("nan")}, "iou must be between 0 and 1"),
        ({}, {"metric": "voc12"}, 'metric must be "voc07" or "voc10"'),
        ({}, {"classes": "cat"}, "classes must be a list of names"),
        ({"boxes": np.full((1, 4), np.nan)}, {}, "the prediction of image 0 has boxes that are NaN or infinite"),
        ({"scores": None}, {}, "the prediction of image 0 has no 'scores'"),
        ({"labels": None}, {}, "the prediction of image 0 has no 'labels'"),
    ],
)
def test_invalid_arguments_are_refused(changed: dict, options: dict, message: str) -> None:
    detections = {key: value for key, value in {**GOOD, **changed}.items() if value is not None}
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate([detections], [GOOD], **{"classes": ["cat"], **options})
