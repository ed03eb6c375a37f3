"""The signs of RoIs for each class, and the file of their features, which is made again only for a reason."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ohem.bootstrap.features import (
    Overlaps,
    Parts,
    RoIFeatures,
    cached_features,
    overlaps_of,
    roi_features,
)
from ohem.data.loader import prepare_example
from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.regions import Regions
from ohem.errors import InputError
from ohem.rois import match
from ohem.samplers import AllSampler

# All boxes are ten pixels high, so that the width of a box gives its IoU.
BOXES = {
    "object": [0, 0, 100, 10],
    "half": [0, 0, 50, 10],
    "third": [0, 0, 33, 10],
    "quarter": [0, 0, 25, 10],
    "away": [300, 0, 400, 10],
}


def column(
    target: dict[str, Tensor], *, positive_iou: float = 1.0, negative_iou: float = 0.3, classes: int = 2
) -> dict[str, list[int]]:
    """Returns the sign of each of BOXES, used as proposals, for each class."""
    rois = match([torch.tensor(list(BOXES.values())).float()], [target])
    signs = overlaps_of(rois, target, classes).signs(positive_iou, negative_iou)
    assert signs.dtype == np.int8
    return dict(zip(BOXES, signs[-len(BOXES) :].tolist(), strict=True))


def truth(box: str, label: int, ignore: bool = False) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([BOXES[box]]).float(),
        "labels": torch.tensor([label]),
        "ignore": torch.tensor([ignore]),
    }


def test_object_is_positive_and_overlapping_rois_are_neither() -> None:
    signs = column(truth("object", 1))
    assert {name: sign[0] for name, sign in signs.items()} == {
        "object": 1,
        "half": 0,
        "third": 0,
        "quarter": -1,
        "away": -1,
    }


def test_every_roi_is_a_negative_of_the_other_class() -> None:
    assert {sign[1] for sign in column(truth("object", 1)).values()} == {-1}


def test_positives_are_at_least_and_negatives_below_their_threshold() -> None:
    wide = column(truth("object", 1), positive_iou=0.5, negative_iou=0.5)
    assert [sign[0] for sign in wide.values()] == [1, 1, -1, -1, -1]
    narrow = column(truth("object", 1), negative_iou=0.25)
    assert [sign[0] for sign in narrow.values()] == [1, 0, 0, 0, -1]


def test_ignored_regions_give_neither_positives_nor_negatives() -> None:
    signs = column(truth("object", 1, ignore=True), positive_iou=0.5)
    assert [sign[0] for sign in signs.values()] == [0, 0, 0, 0, -1]
    assert [sign[1] for sign in signs.values()] == [0, 0, 0, 0, -1]


def test_image_without_objects_has_only_negatives() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "ignore": torch.zeros(0).bool()}
    assert {number for sign in column(empty).values() for number in sign} == {-1}


def detector() -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(tiny(16), 3, AllSampler()).eval()


def test_features_are_the_input_of_the_output_layers() -> None:
    """RoIs with the same window are one row, which is positive if one of them is."""
    model = detector()
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # The second has the same window as the object, the third has not.
    proposals = torch.tensor([[8.0, 8, 40, 40], [9, 9, 39, 39], [40, 8, 72, 40]])
    target = {"boxes": proposals[:1], "labels": torch.tensor([2]), "ignore": torch.tensor([False])}
    example = prepare_example("a", image, proposals.numpy(), target, short=64, long=80)
    ((features, overlaps, _),) = roi_features(model, [example])
    signs = overlaps.signs(positive_iou=1.0, negative_iou=0.3)
    assert sorted(signs.tolist()) == [[-1, -1], [-1, 1]]
    rois = match([proposals[[0, 2]]], [target], add_ground_truth=False)
    with torch.no_grad():
        scores, _ = model.head(model.backbone([image]), rois)
        order = (-signs[:, 1]).argsort()
        torch.testing.assert_close(model.scores(features[order]), scores)


def test_features_of_regions_are_those_that_are_classified() -> None:
    """Those of the region from which boxes are regressed are left out."""
    torch.manual_seed(0)
    model = FastRCNN(tiny(16), 3, AllSampler(), regions=Regions()).eval()
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[8.0, 8, 40, 40]])
    target = {"boxes": box, "labels": torch.tensor([2]), "ignore": torch.tensor([False])}
    example = prepare_example("a", image, box.numpy(), target, short=64, long=80)
    ((features, *_),) = roi_features(model, [example])
    assert features.shape == (1, 160)
    with torch.no_grad():
        scores, _ = model.head(model.feature_map([image]), match([box[:0]], [target]))
        torch.testing.assert_close(model.scores(features), scores)


# The file

MADE_WITH = {"step": 3, "classes": ["a", "b"]}


def rows() -> list[RoIFeatures]:
    """Features of three images, one of them without a RoI."""
    rng = torch.Generator().manual_seed(0)
    return [
        RoIFeatures(torch.rand(n, 4, generator=rng), Overlaps(*torch.rand(2, n, 2, generator=rng))) for n in (5, 0, 3)
    ]


def never() -> Iterator[RoIFeatures]:
    raise AssertionError("the features are made again")
    yield


def make(path: Path, made_with: dict[str, object] = MADE_WITH, dtype: torch.dtype = torch.float16) -> RoIFeatures:
    return cached_features(path, made_with, rows(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_file_contains_the_features(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "new" / "features.safetensors"
    for features in (make(path, dtype=dtype), cached_features(path, MADE_WITH, never(), dtype)):
        assert torch.equal(features.features, torch.cat([row.features for row in rows()]).to(dtype))
        assert torch.equal(features.overlaps.objects, torch.cat([row.overlaps.objects for row in rows()]))
        assert torch.equal(features.overlaps.anything, torch.cat([row.overlaps.anything for row in rows()]))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_changed_or_damaged_features_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "features.safetensors"
    make(path)
    capsys.readouterr()
    make(path, {**MADE_WITH, "step": 4})
    assert "made with step 3, now 4" in capsys.readouterr().out
    cached_features(path, {**MADE_WITH, "step": 4}, never(), torch.float16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(make(path).features) == 8
    assert "not a complete file of features" in capsys.readouterr().out
    for position in (len(whole) - 1, len(whole) - 100, 9, 100):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert torch.equal(make(path).features, torch.cat([row.features for row in rows()]).half())
        assert ": made again" in capsys.readouterr().out


def test_interruption_leaves_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    make(path)
    before = path.read_bytes()
    with pytest.raises(AssertionError):
        cached_features(path, {"step": 4}, never(), torch.float16)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_features_too_large_for_float16_are_reported(tmp_path: Path) -> None:
    path, large = tmp_path / "features.safetensors", [RoIFeatures(torch.full((5, 4), 1e5), rows()[0].overlaps)]
    with pytest.raises(InputError, match="--precision float32"):
        cached_features(path, MADE_WITH, large, torch.float16)
    assert not list(tmp_path.iterdir())
    assert cached_features(path, MADE_WITH, large, torch.float32).features.max() == 1e5


def test_images_without_rois_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no RoI"):
        cached_features(tmp_path / "features.safetensors", MADE_WITH, rows()[1:2], torch.float16)


def test_unwritable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make(tmp_path / "taken" / "features.safetensors")


# Files of single images


def parts_of(folder: Path, computed: list[int], made_with: dict[str, object] = MADE_WITH) -> Parts:
    """Returns parts whose image i has i + 1 rows; `computed` gets the images that are computed."""

    def compute(index: int) -> RoIFeatures:
        computed.append(index)
        n = index + 1
        values = torch.full((n, 4), float(index))
        return RoIFeatures(values, Overlaps(values[:, :2].clone(), values[:, :2].clone()), values.clone())

    return Parts(folder, made_with, 4, compute)


def test_images_that_are_done_are_not_computed_again(tmp_path: Path) -> None:
    path, computed = tmp_path / "features.safetensors", list[int]()
    parts = parts_of(tmp_path / "parts", computed)
    assert [len(parts[i].features) for i in (0, 1, 2)] == [1, 2, 3]
    damaged = tmp_path / "parts" / "1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = parts_of(tmp_path / "parts", computed)
    rows = cached_features(path, MADE_WITH, (again[i] for i in range(len(again))), torch.float32)
    assert computed == [0, 1, 2, 1, 3]
    assert rows.features[:, 0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert rows.targets is not None
    assert torch.equal(rows.targets, rows.features)
    again.remove()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again.remove()  # nothing is left


def test_images_that_were_made_with_something_else_are_computed_again(tmp_path: Path) -> None:
    computed: list[int] = []
    parts_of(tmp_path / "parts", computed)[0]
    parts_of(tmp_path / "parts", computed, {**MADE_WITH, "step": 4})[0]
    assert computed == [0, 0]
