"""False positives per image at a recall, against cases counted by hand and a count over all thresholds."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ohem.metrics.false_positives import background_shares, false_positives_per_image
from ohem.metrics.voc import evaluate

Images = list[dict[str, Any]]
BOX, ELSEWHERE = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def detections(*rows: tuple[list[float], int, float]) -> dict[str, Any]:
    boxes, labels, scores = zip(*rows, strict=True) if rows else ([], [], [])
    return {"boxes": list(boxes), "labels": list(labels), "scores": list(scores)}


def objects(*rows: tuple[list[float], int], ignore: int = 0) -> dict[str, Any]:
    count = len(rows)
    boxes, labels = zip(*rows, strict=True) if rows else ([], [])
    return {"boxes": list(boxes), "labels": list(labels), "ignore": [i < ignore for i in range(count)]}


def test_counted_by_hand() -> None:
    """Two of two objects are detected with the scores 0.9 and 0.5; two false positives are above 0.5, one is below."""
    detected = [
        detections((BOX, 1, 0.9), (ELSEWHERE, 1, 0.8), (ELSEWHERE, 2, 0.1)),
        detections((ELSEWHERE, 2, 0.7), (BOX, 2, 0.5)),
        detections(),
    ]
    truth = [objects((BOX, 1)), objects((BOX, 2)), objects()]
    assert false_positives_per_image(detected, truth, recall=1.0, classes=2) == pytest.approx(2 / 3)
    assert false_positives_per_image(detected, truth, recall=0.8, classes=2) == pytest.approx(2 / 3)
    assert false_positives_per_image(detected, truth, recall=0.5, classes=2) == 0


def test_second_detection_of_an_object_is_false() -> None:
    detected, truth = [detections((BOX, 1, 0.9), (BOX, 1, 0.9), (BOX, 1, 0.8))], [objects((BOX, 1))]
    # The two of 0.9 are above any threshold together.
    assert false_positives_per_image(detected, truth, classes=1) == 1


def test_ignored_objects_are_neither() -> None:
    detected = [detections((BOX, 1, 0.9), (ELSEWHERE, 1, 0.5))]
    truth = [objects((BOX, 1), (ELSEWHERE, 1), ignore=1)]
    assert false_positives_per_image(detected, truth, classes=1) == 0


def test_limits() -> None:
    truth = [objects((BOX, 1))]
    assert false_positives_per_image([detections((ELSEWHERE, 1, 0.9))], truth, classes=1) == math.inf
    assert math.isnan(false_positives_per_image([detections((BOX, 1, 0.9))], [objects()], classes=1))
    with pytest.raises(ValueError, match="recall"):
        false_positives_per_image([], [], recall=1.5, classes=1)


def test_four_of_five_are_80_percent() -> None:
    truth = [objects((BOX, 1)) for _ in range(5)]
    detected = [detections((BOX, 1, 0.9)) for _ in range(4)] + [detections((ELSEWHERE, 1, 0.95))]
    assert false_positives_per_image(detected, truth, classes=1) == pytest.approx(1 / 5)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[Images, Images]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def boxes(count: int) -> list[list[float]]:
        corners = rng.integers(0, 12, (count, 2)).astype(float)
        return np.concatenate([corners, corners + rng.integers(4, 10, (count, 2))], axis=1).tolist()

    detected, truth = [], []
    for _ in range(draw(st.integers(1, 4))):
        d, g = rng.integers(0, 8), rng.integers(0, 4)
        scores = rng.integers(1, 6, d) / 5  # many are equal
        detected.append({"boxes": boxes(d), "labels": rng.integers(1, 3, d).tolist(), "scores": scores.tolist()})
        ignore = (rng.random(g) < 0.2).tolist()
        truth.append({"boxes": boxes(g), "labels": rng.integers(1, 3, g).tolist(), "ignore": ignore})
    return detected, truth


@given(data_sets(), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_is_the_lowest_over_all_thresholds(data: tuple[Images, Images], recall: float) -> None:
    """Removes the detections below each threshold, and takes true and false positives from the curves of VOC."""
    detected, truth = data
    best = math.inf
    for threshold in sorted({score for image in detected for score in image["scores"]}, reverse=True):
        above = []
        for image in detected:
            kept = [i for i, score in enumerate(image["scores"]) if score >= threshold]
            above.append({name: [values[i] for i in kept] for name, values in image.items()})
        result = evaluate(above, truth, classes=["a", "b"])
        count = sum(result.npos.values())
        true = sum(
            result.recall[n][-1] * result.npos[n] for n in result.npos if len(result.recall[n]) and result.npos[n]
        )
        if count and true >= recall * count - 1e-6:
            best = _false(above, truth) / len(detected)
            break
    actual = false_positives_per_image(detected, truth, recall=recall, classes=2)
    if all(all(image["ignore"]) for image in truth):
        assert math.isnan(actual)
    else:
        assert actual == pytest.approx(best)


def _false(detections: Images, truth: Images) -> float:
    """Counts the false positives one by one."""
    false = 0
    for detected, image in zip(detections, truth, strict=True):
        claimed: set[int] = set()
        for i in sorted(range(len(detected["scores"])), key=lambda i: (-detected["scores"][i], i)):
            of_class = [j for j, label in enumerate(image["labels"]) if label == detected["labels"][i]]
            overlap = [_iou(detected["boxes"][i], image["boxes"][j]) for j in of_class]
            j = of_class[int(np.argmax(overlap))] if overlap else -1
            if not overlap or max(overlap) <= 0.5 or (j in claimed and not image["ignore"][j]):
                false += 1
            elif not image["ignore"][j]:
                claimed.add(j)
    return false


def _iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area - width * height)


def test_background_among_the_best_detections_by_hand() -> None:
    """Of the two best detections of class 1, which has two objects, one is background; of class 2, one is a part."""
    detected = [
        detections((BOX, 1, 0.9), (ELSEWHERE, 1, 0.8), (BOX, 1, 0.7), (ELSEWHERE, 3, 0.9)),
        detections(([0.0, 0.0, 10.0, 4.0], 2, 0.9), (ELSEWHERE, 2, 0.3)),
    ]
    truth = [objects((BOX, 1)), objects((BOX, 1), ([20.0, 0.0, 30.0, 10.0], 2))]
    shares = background_shares(detected, truth, classes=4)
    assert shares[:2] == [0.5, 0]
    assert np.isnan(shares[2:]).all()  # no object
    # An object of another class, and an ignored one, is no background.
    assert background_shares([detections((BOX, 1, 0.9))], [objects((BOX, 2), (ELSEWHERE, 1))], classes=1 + 1)[0] == 0
    ignored = [objects((ELSEWHERE, 1), (BOX, 1), ignore=1)]
    assert background_shares([detections((ELSEWHERE, 1, 0.9))], ignored, classes=1) == [0]
    assert background_shares([], [], classes=1) == [pytest.approx(math.nan, nan_ok=True)]


@given(st.integers(0, 2**32 - 1))
def test_background_shares_are_those_of_a_perfect_detector_and_of_one_without_objects(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 50, (5, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 20, (5, 2))], axis=1)
    labels = random.integers(1, 3, 5)
    truth = [{"boxes": boxes, "labels": labels}]
    right = [{"boxes": boxes, "labels": labels, "scores": random.random(5)}]
    wrong = [{"boxes": boxes + 1000, "labels": labels, "scores": random.random(5)}]
    present = np.bincount(labels, minlength=3)[1:] > 0
    assert np.array_equal(background_shares(right, truth, classes=2), np.where(present, 0, np.nan), equal_nan=True)
    assert np.array_equal(background_shares(wrong, truth, classes=2), np.where(present, 1, np.nan), equal_nan=True)
