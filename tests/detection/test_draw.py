"""Drawn pictures: what is coloured, what is left alone, and that labels stay inside."""

import pytest
import torch
from torch import Tensor

from ohem.detection.draw import draw_detections, draw_side_by_side

GREY = torch.full((3, 100, 200), 100, dtype=torch.uint8)


def changed(picture: Tensor, image: Tensor = GREY) -> Tensor:
    """(H, W) bool: the pixels drawn on."""
    return (picture != image).any(dim=0)


def test_no_boxes_give_the_same_picture() -> None:
    assert torch.equal(draw_detections(GREY, torch.zeros(0, 4), [], []), GREY)


def test_the_image_itself_is_not_drawn_on() -> None:
    image = GREY.clone()
    draw_detections(image, torch.tensor([[10.0, 40, 60, 90]]), ["cat"], [0.5])
    assert torch.equal(image, GREY)


def test_the_outline_lies_just_inside_the_box() -> None:
    picture = draw_detections(GREY, torch.tensor([[20.0, 40, 60, 90]]), ["cat"], [0.5])
    assert picture.dtype == torch.uint8
    assert picture.shape == GREY.shape
    drawn = changed(picture)
    assert drawn[40:90, 20].all()
    assert drawn[40:90, 59].all()
    assert drawn[89, 20:60].all()
    assert not drawn[90:].any()
    assert not drawn[:, :20].any()
    assert not drawn[60:80, 30:50].any()


def test_a_name_has_one_colour_and_other_names_have_others() -> None:
    boxes = torch.tensor([[10.0, 40, 60, 90], [80.0, 40, 130, 90], [140.0, 40, 190, 90]])
    picture = draw_detections(GREY, boxes, ["cat", "dog", "cat"], [0.9, 0.8, 0.7])
    cat, dog, other_cat = picture[:, 89, 11], picture[:, 89, 81], picture[:, 89, 141]
    assert torch.equal(cat, other_cat)
    assert not torch.equal(cat, dog)
    assert torch.equal(draw_detections(GREY, boxes[1:2], ["cat"])[:, 89, 81], cat)


@pytest.mark.parametrize(
    "box", [[0.0, 0, 200, 100], [190.0, 50, 200, 60], [150.0, 0, 200, 5], [0.0, 96, 10, 100], [-5.0, -5, 300, 300]]
)
def test_a_label_at_any_edge_is_shown_whole(box: list[float]) -> None:
    """The same pixels as those of a label that has room on all sides, somewhere in the picture."""
    roomy = draw_detections(GREY, torch.tensor([[50.0, 40, 180, 90]]), ["king"], [0.93])[:, :40]
    rows, columns = changed(roomy, GREY[:, :40]).nonzero().T
    label = roomy[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert label.shape[1] > 8
    assert label.shape[2] > 30
    picture = draw_detections(GREY, torch.tensor([box]), ["king"], [0.93])
    places = picture.unfold(1, label.shape[1], 1).unfold(2, label.shape[2], 1)  # (3, Y, X, h, w)
    assert int((places == label[:, None, None]).all(dim=4).all(dim=3).all(dim=0).sum()) == 1


def test_the_score_is_written_with_two_digits() -> None:
    box = torch.tensor([[20.0, 40, 60, 90]])
    written = draw_detections(GREY, box, ["cat"], [0.93])
    assert torch.equal(written, draw_detections(GREY, box, ["cat"], [0.929]))
    assert not torch.equal(written, draw_detections(GREY, box, ["cat"], [0.94]))
    assert not torch.equal(written, draw_detections(GREY, box, ["cat"]))


def test_the_first_box_is_on_top() -> None:
    boxes = torch.tensor([[20.0, 40, 60, 90], [20.0, 40, 60, 90]])
    best, both = (
        draw_detections(GREY, boxes[:1], ["cat"], [0.9]),
        draw_detections(GREY, boxes, ["cat", "dog"], [0.9, 0.1]),
    )
    assert torch.equal(both[:, 89, 20:60], best[:, 89, 20:60])


def test_labels_grow_with_the_picture() -> None:
    big = torch.zeros(3, 1000, 2000, dtype=torch.uint8)
    small_label = changed(draw_detections(GREY, torch.tensor([[20.0, 40, 60, 90]]), ["cat"]))[:40].sum()
    big_label = changed(draw_detections(big, torch.tensor([[200.0, 400, 600, 900]]), ["cat"]), big)[:400].sum()
    assert big_label > 4 * small_label > 0


def test_a_box_without_area_does_no_harm() -> None:
    assert changed(draw_detections(GREY, torch.tensor([[20.0, 40, 20, 40]]), ["cat"], [0.5])).any()


@pytest.mark.parametrize(("names", "scores"), [(["cat"], [0.5]), (["cat", "dog"], [0.5]), (["cat"], None)])
def test_numbers_that_differ_are_refused(names: list[str], scores: list[float] | None) -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_detections(GREY, torch.rand(2, 4), names, scores)


def test_side_by_side_keeps_both_pictures_and_adds_captions() -> None:
    left, right = (
        torch.randint(256, (3, 100, 120), dtype=torch.uint8),
        torch.randint(256, (3, 80, 90), dtype=torch.uint8),
    )
    sheet = draw_side_by_side(left, right, titles=("frcn", "ohem"))
    gap = (sheet.shape[2] - 120 - 90) // 3
    assert sheet.shape == (3, 100 + 3 * gap, 120 + 90 + 3 * gap)
    assert torch.equal(sheet[:, 2 * gap : 2 * gap + 100, gap : gap + 120], left)
    assert torch.equal(sheet[:, 2 * gap : 2 * gap + 80, 2 * gap + 120 : 2 * gap + 210], right)
    assert (sheet[:, : 2 * gap, : gap + 60] > 200).any()
    with pytest.raises(ValueError, match="zip"):
        draw_side_by_side(left, right, titles=("frcn",))
