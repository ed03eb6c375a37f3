"""COCO's metrics: comparison with pycocotools, the official program, and cases by hand."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ohem.data.coco import COCODetection
from ohem.metrics.coco import FIGURES, COCOResult, evaluate, write_results
from tests.helpers.official_coco import official
from tests.helpers.reference import SHARED, needs_shared

CLASSES = ("cat", "dog", "emu")
BOX = [10.0, 10.0, 20.0, 20.0]
FAR = [50.0, 50.0, 60.0, 60.0]
Item = Mapping[str, Any]


def target(boxes: list, labels: list[int] | None = None, ignore: list[bool] | None = None, **fields: Any) -> Item:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
        "ignore": torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
        **fields,
    }


def prediction(boxes: list, scores: list[float], labels: list[int] | None = None) -> Item:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
    }


# --- comparison with pycocotools


def as_official(targets: Sequence[Item], classes: Sequence[str]) -> dict[str, Any]:
    """Converts `targets` to annotations in the official format, with image and category ids from 1."""
    annotations = []
    for image, item in enumerate(targets, start=1):
        boxes = item["boxes"].double().numpy()
        areas = item.get("area", torch.as_tensor((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
        for (x1, y1, x2, y2), label, ignore, area in zip(
            boxes.tolist(), item["labels"].tolist(), item["ignore"].tolist(), areas.tolist(), strict=True
        ):
            fields = {"image_id": image, "category_id": label, "iscrowd": int(ignore), "area": area}
            annotations.append({"id": len(annotations) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], **fields})
    return {
        "images": [{"id": image + 1} for image in range(len(targets))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": annotations,
    }


def check(predictions: Sequence[Item], targets: Sequence[Item], folder: Path, classes: Sequence[str] = CLASSES) -> None:
    """Asserts that `evaluate` and pycocotools, on the file of `write_results`, give the same figures to 1e-9."""
    path = folder / "results.json"
    write_results(
        path, predictions, range(1, len(targets) + 1), {label + 1: label + 1 for label in range(len(classes))}
    )
    figures, per_class = official(as_official(targets, classes), json.loads(path.read_text()))
    compare(evaluate(predictions, targets, classes=classes), figures, per_class)


def compare(result: COCOResult, figures: dict[str, float], per_class: list[float]) -> None:
    ours = {name: value for name, value in asdict(result).items() if name in FIGURES}
    assert ours == pytest.approx(figures, abs=1e-9, rel=0, nan_ok=True)
    assert list(result.per_class.values()) == pytest.approx(per_class, abs=1e-9, rel=0, nan_ok=True)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[Item], list[Item]]:
    """Draws images with objects, some of them crowds or with a given area, and detections near them or anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    predictions, targets = [], []
    for _ in range(draw(st.integers(1, 4))):
        objects, strays = draw(st.integers(0, 6)), draw(st.integers(0, 6))
        # With whole numbers, some IoUs and areas equal a threshold exactly. Large and small objects both occur.
        corners = rng.integers(0, 100, (objects, 2))
        truth = np.hstack([corners, corners + rng.integers(1, 12, (objects, 2)) * rng.choice([1, 4, 16])])
        labels = rng.integers(1, len(CLASSES) + 1, objects)
        near = np.repeat(truth, draw(st.integers(0, 3)), axis=0)
        near = near + rng.integers(-1, 2, near.shape) * np.array([1, 1, 0, 0])
        corners = rng.integers(0, 100, (strays, 2))
        far = np.hstack([corners, corners + rng.integers(1, 100, (strays, 2))])
        boxes = np.vstack([near, far])
        near_labels = np.repeat(labels, len(near) // objects if objects else 0)
        all_labels = np.concatenate([near_labels, rng.integers(1, len(CLASSES) + 1, strays)])
        scores = rng.integers(0, 8, len(boxes)) / 8  # with ties
        predictions.append(prediction(boxes.tolist(), scores.tolist(), all_labels.tolist()))
        ignore = (rng.random(objects) < 0.3).tolist()
        area = {"area": torch.tensor(rng.uniform(0, 12_000, objects))} if draw(st.booleans()) else {}
        targets.append(target(truth.tolist(), labels.tolist(), ignore, **area))
    return predictions, targets


@given(datasets())
def test_random_data_score_as_with_pycocotools(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    check(*data, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        pytest.param([prediction([], [])], [target([])], id="nothing at all"),
        pytest.param([prediction([], [])], [target([BOX])], id="no detection"),
        pytest.param([prediction([BOX], [0.5])], [target([])], id="no object"),
        pytest.param([prediction([BOX], [0.5])], [target([BOX], ignore=[True])], id="only a crowd"),
        pytest.param([prediction([BOX, BOX], [0.5, 0.5])], [target([BOX])], id="detected twice"),
        pytest.param([prediction([BOX], [0.5], [2])], [target([BOX])], id="another class"),
        pytest.param(
            [prediction([BOX, FAR, [52, 52, 58, 58], [90, 90, 99, 99]], [0.5, 0.9, 0.9, 0.2])],
            [target([BOX, [40, 40, 80, 80]], ignore=[False, True])],
            id="many in a crowd",
        ),
        pytest.param(
            [prediction([BOX], [0.5]), prediction([], []), prediction([FAR], [0.7])],
            [target([FAR]), target([]), target([FAR])],
            id="an image with nothing",
        ),
        pytest.param(
            [prediction([BOX] * 120, [i / 120 for i in range(120)])],
            [target([BOX, FAR])],
            id="more than 100 detections",
        ),
    ],
)
def test_special_cases_score_as_with_pycocotools(
    predictions: Sequence[Item], targets: Sequence[Item], tmp_path: Path
) -> None:
    check(predictions, targets, tmp_path)


@needs_shared
@pytest.mark.parametrize("split", ["train", "val"])
def test_tiny_coco_with_perturbed_boxes(split: str, tmp_path: Path) -> None:
    """Compares with the official program, which reads the original annotation file."""
    root = SHARED / "data/tiny_coco"
    path = root / f"annotations/instances_{split}2017.json"
    data = COCODetection(f"{path}:{root / f'{split}2017'}")
    targets = [data.target(i) for i in range(len(data))]
    rng = torch.Generator().manual_seed(0)
    predictions = [perturb(item, rng) for item in targets]
    (source,) = data.sources
    numbers = {label: category for label, (_, category) in enumerate(source.category_ids, start=1)}
    write_results(tmp_path / "results.json", predictions, source.image_ids, numbers)
    truth = json.loads(path.read_text())
    figures, per_class = official(truth, json.loads((tmp_path / "results.json").read_text()))
    result = evaluate(predictions, targets, classes=data.classes)
    compare(result, figures, per_class)
    assert 50 < result.ap < result.ap50 < 95


def perturb(item: Item, rng: torch.Generator) -> Item:
    """Returns three detections per object, from good to bad, some of another class, with random scores."""
    boxes = item["boxes"].repeat(3, 1)
    sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + torch.randn(boxes.shape, generator=rng) * sizes * torch.tensor([0.02, 0.05, 0.2]).repeat_interleave(
        len(item["boxes"])
    ).unsqueeze(1)
    labels = item["labels"].repeat(3)
    labels = torch.where(torch.rand(len(labels), generator=rng) < 0.1, 1, labels)
    keep = (moved[:, 2:] > moved[:, :2]).all(dim=1)
    return {"boxes": moved[keep], "labels": labels[keep], "scores": torch.rand(int(keep.sum()), generator=rng)}


# --- by hand


def test_a_perfect_detection() -> None:
    result = evaluate([prediction([BOX], [0.1])], [target([BOX])], classes=CLASSES)
    assert (result.ap, result.ap50, result.ap75, result.ap_small, result.ar1, result.ar100) == pytest.approx((100,) * 6)
    assert math.isnan(result.ap_medium)
    assert math.isnan(result.ar_large)
    assert result.per_class["cat"] == pytest.approx(100)
    assert math.isnan(result.per_class["dog"])
    assert result.images == 1


def test_iou_of_two_thirds_is_above_four_of_ten_thresholds() -> None:
    result = evaluate([prediction([[10, 10, 20, 25]], [0.1])], [target([BOX])], classes=CLASSES)
    assert (result.ap, result.ap50, result.ap75, result.ar100) == pytest.approx((40, 100, 0, 40))


@pytest.mark.parametrize(("area", "size"), [(1023, "small"), (1025, "medium"), (9217, "large")])
def test_given_area_overrides_that_of_the_box(area: float, size: str) -> None:
    result = evaluate([prediction([BOX], [0.1])], [target([BOX], area=[area])], classes=CLASSES)
    known = {name for name in ("small", "medium", "large") if not math.isnan(getattr(result, f"ap_{name}"))}
    assert known == {size}


def test_detections_in_a_crowd_are_neither_true_nor_false_positives() -> None:
    crowd = target([BOX, [40, 40, 80, 80]], ignore=[False, True])
    result = evaluate([prediction([FAR, FAR, BOX], [0.9, 0.8, 0.1])], [crowd], classes=CLASSES)
    assert result.ap == pytest.approx(100)
    without = evaluate([prediction([FAR, FAR, BOX], [0.9, 0.8, 0.1])], [target([BOX])], classes=CLASSES)
    assert without.ap == pytest.approx(100 / 3)


def test_no_image_and_no_class() -> None:
    result = evaluate([], [], classes=[])
    assert math.isnan(result.ap)
    assert (result.per_class, result.images) == ({}, 0)


def test_arrays_lists_and_iterators_are_accepted() -> None:
    detections = {"boxes": np.array([BOX]), "scores": [0.5], "labels": np.array([1])}
    result = evaluate(iter([detections]), iter([{"boxes": [BOX], "labels": [1]}]), classes=CLASSES)
    assert result.ap == pytest.approx(100)


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([prediction([BOX], [0.9])], [], "more predictions than targets, of which there are 0"),
        ([prediction([BOX], [0.9])], [target([BOX], [4])], r"target of image 0 has a label outside 1\.\.3"),
        ([prediction([BOX], [0.9])], [target([BOX], area=[1.0, 2.0])], "1 boxes and 2 area: they must agree"),
        ([prediction([BOX], [float("nan")])], [target([BOX])], "NaN among its scores"),
    ],
)
def test_inconsistent_input_is_refused(predictions: list, targets: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(predictions, targets, classes=CLASSES)


def test_hotcoco_is_imported_only_when_needed() -> None:
    program = "import sys, ohem.metrics.coco; sys.exit('hotcoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- result files


def test_result_file(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    predictions = [prediction([BOX, [0, 0.5, 2, 4]], [0.5, 0.25], [2, 1]), prediction([], []), prediction([FAR], [1.0])]
    write_results(path, predictions, [391895, 9, 7], {1: 17, 2: 90})
    assert json.loads(path.read_text()) == [
        {"image_id": 391895, "category_id": 90, "bbox": [10, 10, 10, 10], "score": 0.5},
        {"image_id": 391895, "category_id": 17, "bbox": [0, 0.5, 2, 3.5], "score": 0.25},
        {"image_id": 7, "category_id": 17, "bbox": [50, 50, 10, 10], "score": 1},
    ]
    write_results(path, [prediction([], [])], [1], {})
    assert json.loads(path.read_text()) == []


def test_detections_without_a_category_are_left_out_with_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    with pytest.warns(UserWarning, match=r"detections\.json: left out 2 detections of classes that") as warned:
        write_results(path, [prediction([BOX, FAR, BOX], [0.5, 0.6, 0.7], [1, 2, 1])], [3], {2: 5})
    assert len(warned) == 1
    assert [entry["category_id"] for entry in json.loads(path.read_text())] == [5]


def test_result_file_is_complete_or_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text("before")
    with pytest.raises(ValueError):
        write_results(path, [prediction([BOX], [0.5]), prediction([BOX], [float("nan")])], [1, 2], {1: 1})
    with pytest.raises(ValueError):
        write_results(path, [prediction([BOX], [0.5])], [1, 2], {1: 1})
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["detections.json"]
