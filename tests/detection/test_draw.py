"""Images with drawn boxes: which pixels change, and where labels lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.detection.draw import (
    BACKGROUND,
    FOREGROUND,
    PADDING,
    Area,
    _font,
    _overlap,
    _place_label,
    _text_size,
    draw_detections,
    draw_hardest,
    draw_side_by_side,
)
from ohem.recorder import Recorder
from ohem.rois import RoIs
from ohem.samplers import AllSampler, Losses
from tests.helpers.make_rois import make_rois

GREY = torch.full((3, 100, 200), 100, dtype=torch.uint8)


def changed(picture: Tensor, image: Tensor = GREY) -> Tensor:
    """Returns (H, W) bool: the pixels that were drawn on."""
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
def test_a_label_at_any_edge_is_drawn_completely(box: list[float]) -> None:
    """Checks that the text has the same pixels as that of a label with room on all sides."""
    roomy = draw_detections(GREY, torch.tensor([[50.0, 40, 180, 90]]), ["king"], [0.93])[:, :40]
    rows, columns = changed(roomy, GREY[:, :40]).nonzero().T
    label = roomy[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert label.shape[1] > 8
    assert label.shape[2] > 30
    picture = draw_detections(GREY, torch.tensor([box]), ["king"], [0.93])
    places = picture.unfold(1, label.shape[1], 1).unfold(2, label.shape[2], 1)  # (3, Y, X, h, w)
    # The background is half-transparent, so that the box and the image are visible through it: only the text counts.
    background = label.flatten(1).mode(dim=1).values[:, None, None]
    text = (label.int() - background.int()).abs().sum(dim=0) > 150
    same = ((places.int() - label[:, None, None].int()).abs() < 40).all(dim=0) | ~text
    assert text.sum() > 30
    assert int(same.all(dim=3).all(dim=2).sum()) == 1


def label_areas(boxes: list[list[float]], names: list[str]) -> list[Area]:
    """Returns the area of each label, in the order of the boxes, in an image of 200 x 100 pixels."""
    placed: list[Area] = []
    for box, name in zip(boxes, names, strict=True):
        width, height = (extent + 2 * PADDING for extent in _text_size(name, _font((200, 100))))
        placed.append(_place_label([round(x) for x in box], (width, height), (200, 100), placed))
    return placed


def test_labels_of_one_place_do_not_overlap() -> None:
    """Draws four equal boxes, with labels above, inside the top, below and inside the bottom."""
    areas = label_areas([[50.0, 40, 120, 80]] * 4, ["one"] * 4)
    height = areas[0][3] - areas[0][1]
    assert [area[1] for area in areas] == [40 - height, 40 - height, 40, 40]
    assert [area[0] for area in areas[::2]] == [50, 50]
    assert areas[1][2] == areas[3][2] == 120
    for i, first in enumerate(areas):
        assert not any(_overlap(first, second) for second in areas[:i])


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 70), st.integers(1, 60), st.integers(1, 60)), max_size=8))
def test_labels_lie_in_the_picture_and_overlap_only_without_room(boxes: list[tuple[int, int, int, int]]) -> None:
    areas = label_areas([[x, y, x + w, y + h] for x, y, w, h in boxes], ["ace"] * len(boxes))
    for area in areas:
        assert area[0] >= 0
        assert area[1] >= 0
        assert area[2] <= 200
        assert area[3] <= 100
    if len(areas) <= 3:
        assert not any(_overlap(first, second) for i, first in enumerate(areas) for second in areas[:i])


def test_an_object_below_a_label_is_visible() -> None:
    """Checks that a black and a white half of the image give different pixels behind a label."""
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    image[:, :, 100:] = 255
    picture = draw_detections(image, torch.tensor([[80.0, 40, 190, 90]]), ["a long name"])
    (area,) = label_areas([[80.0, 40, 190, 90]], ["a long name"])
    edge = picture[:, area[1], area[0] : area[2]]
    assert len(torch.unique(edge, dim=1).T) == 2


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


BOXES = [[10, 40, 40, 90], [60, 40, 90, 90], [110, 40, 140, 90], [160, 40, 190, 90]]


def mined(chosen: list[int], losses: list[float] | None) -> Recorder:
    """Returns a recorder of four RoIs in two images: foreground and background in the first, then in the second."""

    def sampler(rois: RoIs, compute: Losses) -> Tensor:
        if losses is not None:
            compute()
        return torch.tensor(chosen, dtype=torch.int64)

    recorder = Recorder(sampler)
    recorder(
        make_rois([2, 0, 1, 0], boxes=BOXES, images=[0, 0, 1, 1], num_images=2), lambda *_: torch.tensor(losses or [])
    )
    return recorder


def corners(sheet: Tensor) -> list[list[int]]:
    """Returns the colour at the bottom left of each of `BOXES`, in the picture of its image."""
    gap = (sheet.shape[2] - 2 * 200) // 3
    return [
        sheet[:, 2 * gap + y2 - 1, gap + (number // 2) * (200 + gap) + x1].tolist()
        for number, (x1, _, _, y2) in enumerate(BOXES)
    ]


@pytest.mark.parametrize(
    ("chosen", "losses", "most", "drawn"),
    [
        ([3, 2, 1, 0], [1, 2, 3, 4], 12, "FBFB"),
        ([3, 1, 0], [1, 2, 3, 4], 12, "FB-B"),
        ([0, 1, 2, 3], [1, 2, 4, 3], 1, "-BF-"),
        ([0, 1, 2, 3], None, 12, "FBFB"),
        ([0, 1, 2, 3], None, 1, "F-F-"),
        ([], [1, 2, 3, 4], 12, "----"),
    ],
)
def test_the_hardest_of_the_chosen_are_drawn(
    chosen: list[int], losses: list[float] | None, most: int, drawn: str
) -> None:
    sheet = draw_hardest(mined(chosen, losses), [GREY, GREY], ["a", "b"], ["cat", "dog"], most=most)
    colours = {"F": list(FOREGROUND), "B": list(BACKGROUND), "-": [100, 100, 100]}
    assert corners(sheet) == [colours[letter] for letter in drawn]


def test_a_label_has_the_class_and_the_loss() -> None:
    def sheet(losses: list[float] | None, classes: list[str]) -> Tensor:
        return draw_hardest(mined([0], losses), [GREY, GREY], ["a", "b"], classes)

    plain = sheet([1, 0, 0, 0], ["cat", "dog"])
    assert torch.equal(plain, sheet([1.001, 5, 0, 0], ["cow", "dog"]))
    assert not torch.equal(plain, sheet([1.01, 0, 0, 0], ["cat", "dog"]))
    assert not torch.equal(plain, sheet([1, 0, 0, 0], ["cat", "cow"]))
    assert not torch.equal(plain, sheet(None, ["cat", "dog"]))


def test_nothing_mined_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="train a step first"):
        draw_hardest(Recorder(AllSampler()), [GREY], ["a"], ["cat"])
