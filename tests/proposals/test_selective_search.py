"""Selective search: the convention of its boxes, the influence of seed and threads, and the images that it accepts."""

import ctypes
import subprocess
import sys

import cv2
import numpy as np
import pytest
from defusedxml.ElementTree import parse

from ohem.errors import InputError
from ohem.proposals.boxes import distinct_and_large, fault_of_boxes
from ohem.proposals.selective_search import selective_search
from tests.helpers.reference import SHARED, needs_shared
from tests.proposals.conftest import picture


def test_boxes_are_corners_with_an_exclusive_end():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:50] = (200, 50, 90)
    boxes = selective_search(image)
    assert boxes.dtype == np.float32
    assert {(0, 0, 60, 40), (20, 10, 50, 30)} <= {tuple(box) for box in boxes.tolist()}


def test_the_same_boxes_for_a_seed_whatever_ran_before():
    image = picture(0)
    first = selective_search(image, seed=3)
    selective_search(picture(1), seed=9)
    for _ in range(5):
        ctypes.CDLL(None).rand()
    assert len(first) > 10
    np.testing.assert_array_equal(selective_search(image, seed=3), first)


def test_a_seed_changes_the_order_only():
    zero, one = selective_search(picture(0), seed=0).tolist(), selective_search(picture(0), seed=1).tolist()
    assert zero != one
    assert sorted(zero) == sorted(one)


def test_threads_of_opencv_change_nothing():
    image, threads = picture(0), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = selective_search(image)
        cv2.setNumThreads(4)
        np.testing.assert_array_equal(selective_search(image), alone)
    finally:
        cv2.setNumThreads(threads)


def test_quality_finds_more():
    fast, quality = selective_search(picture(0)), selective_search(picture(0), "quality")
    assert len(quality) > len(fast)


def test_a_wide_image_is_reduced_and_its_boxes_are_in_its_own_pixels():
    image = np.zeros((90, 200, 3), np.uint8)
    image[20:70, 60:160] = (200, 50, 90)
    boxes = selective_search(image, width=50)
    assert {(0, 0, 200, 90), (60, 20, 160, 70)} <= {tuple(box) for box in boxes.round(-1).tolist()}
    assert (boxes.min(), boxes[:, 2].max(), boxes[:, 3].max()) == (0, 200, 90)
    for width in (0, 200, 500):
        np.testing.assert_array_equal(selective_search(image, width=width), selective_search(image))


@pytest.mark.parametrize("width", [1, 7, 49])
def test_boxes_of_a_reduced_image_are_in_the_image(width):
    image = picture(0, height=37, width=101)
    boxes = selective_search(image, width=width)
    assert fault_of_boxes(boxes, (37, 101)) is None


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 50), (50, 1)])
def test_an_image_too_small_for_a_box_has_none(shape):
    boxes = selective_search(np.zeros((*shape, 3), np.uint8))
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32


def test_a_flat_image_is_one_box():
    assert selective_search(np.full((3, 5, 3), 7, np.uint8)).tolist() == [[0, 0, 5, 3]]


def test_filter_keeps_the_first_of_equal_boxes_and_both_sides_above_two():
    boxes = [[9, 9, 20, 20], [0, 0, 3, 3], [9, 9, 20, 20], [0, 0, 2, 9], [0, 0, 9, 2], [1, 1, 5, 5]]
    kept = distinct_and_large(np.array(boxes, np.float32))
    assert kept.tolist() == [[9, 9, 20, 20], [0, 0, 3, 3], [1, 1, 5, 5]]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match=r"takes uint8 \[H, W, 3\]"):
        selective_search(image)


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="no mode 'slow': use fast or quality"):
        selective_search(picture(0), "slow")  # type: ignore[arg-type]


def test_opencv_without_ximgproc_says_what_to_install(monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(InputError, match=r"ohem\[train\]"):
        selective_search(picture(0))


def test_no_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"ohem\[train\]"):
        selective_search(picture(0))


@pytest.mark.parametrize("module", ["selective_search", "parallel", "generate", "store"])
def test_workers_do_not_import_torch(module):
    code = f"import sys, ohem.proposals.{module}; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_shared
def test_recall_on_photographs():
    overlaps = []
    for file in sorted((SHARED / "data/cards/Annotations").glob("*.xml"))[:2]:
        image = cv2.imread(str(SHARED / "data/cards/JPEGImages" / f"{file.stem}.jpg"))
        boxes = selective_search(image)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= image.shape[1::-1]).all()
        for box in parse(file).iter("bndbox"):
            x1, y1, x2, y2 = (int(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
            overlaps.append(iou(boxes, np.array([x1 - 1, y1 - 1, x2, y2])).max())
    assert len(overlaps) >= 2
    assert np.mean(np.array(overlaps) >= 0.5) >= 0.9


def iou(boxes, box):
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = sides.clip(min=0).prod(axis=1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - common)
