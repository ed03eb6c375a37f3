"""What RoIs are to each class, and the file of their features: made once, made again for a reason."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ohem.data.loader import prepare
from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.experiments.bootstrap.features import (
    Overlaps,
    RoIFeatures,
    cached_features,
    overlaps_of,
    roi_features,
)
from ohem.rois import match
from ohem.samplers import AllSampler

# Ten pixels high, so that a width tells an IoU.
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
    """Of each of BOXES, as proposals, its sign for each class."""
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


def test_an_object_is_positive_and_what_overlaps_it_is_neither() -> None:
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


def test_thresholds() -> None:
    """At least `positive_iou`, below `negative_iou`."""
    wide = column(truth("object", 1), positive_iou=0.5, negative_iou=0.5)
    assert [sign[0] for sign in wide.values()] == [1, 1, -1, -1, -1]
    narrow = column(truth("object", 1), negative_iou=0.25)
    assert [sign[0] for sign in narrow.values()] == [1, 0, 0, 0, -1]


def test_ignored_regions_give_neither_positives_nor_negatives() -> None:
    signs = column(truth("object", 1, ignore=True), positive_iou=0.5)
    assert [sign[0] for sign in signs.values()] == [0, 0, 0, 0, -1]
    assert [sign[1] for sign in signs.values()] == [0, 0, 0, 0, -1]


def test_an_image_without_objects_has_negatives_only() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "ignore": torch.zeros(0).bool()}
    assert {number for sign in column(empty).values() for number in sign} == {-1}


def detector() -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(tiny(16), 3, AllSampler()).eval()


def test_features_are_those_that_the_output_layers_see() -> None:
    """One row for RoIs that round alike, of which an object decides."""
    model = detector()
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # The second rounds as the object does, the third does not.
    proposals = torch.tensor([[8.0, 8, 40, 40], [9, 9, 39, 39], [40, 8, 72, 40]])
    target = {"boxes": proposals[:1], "labels": torch.tensor([2]), "ignore": torch.tensor([False])}
    example = prepare("a", image, proposals.numpy(), target, short=64, long=80)
    ((features, overlaps),) = roi_features(model, [example])
    signs = overlaps.signs(positive_iou=1.0, negative_iou=0.3)
    assert sorted(signs.tolist()) == [[-1, -1], [-1, 1]]
    rois = match([proposals[[0, 2]]], [target], add_ground_truth=False)
    with torch.no_grad():
        scores, _ = model.head(model.backbone([image]), rois)
        order = (-signs[:, 1]).argsort()
        torch.testing.assert_close(model.scores(features[order]), scores)


# ------------------------------------------------------------------------------------------------------------ the file

MADE_WITH = {"step": 3, "classes": ["a", "b"]}


def rows() -> list[RoIFeatures]:
    """Of three images, one of them without a RoI."""
    rng = torch.Generator().manual_seed(0)
    return [
        RoIFeatures(torch.rand(n, 4, generator=rng), Overlaps(*torch.rand(2, n, 2, generator=rng))) for n in (5, 0, 3)
    ]


def never() -> Iterator[RoIFeatures]:
    raise AssertionError("made again")
    yield


def make(path: Path, made_with: dict[str, object] = MADE_WITH, dtype: torch.dtype = torch.float16) -> RoIFeatures:
    return cached_features(path, made_with, rows(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_kept_is_what_was_made(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "new" / "features.safetensors"
    for found in (make(path, dtype=dtype), cached_features(path, MADE_WITH, never(), dtype)):
        assert torch.equal(found.features, torch.cat([each.features for each in rows()]).to(dtype))
        assert torch.equal(found.overlaps.objects, torch.cat([each.overlaps.objects for each in rows()]))
        assert torch.equal(found.overlaps.anything, torch.cat([each.overlaps.anything for each in rows()]))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_features_are_made_again_for_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "features.safetensors"
    make(path)
    capsys.readouterr()
    make(path, {**MADE_WITH, "step": 4})
    assert "made with step 3, now 4" in capsys.readouterr().out
    cached_features(path, {**MADE_WITH, "step": 4}, never(), torch.float16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(make(path).features) == 8
    assert "not a whole file of features" in capsys.readouterr().out
    for position in (len(whole) - 1, len(whole) - 100, 9, 100):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert torch.equal(make(path).features, torch.cat([each.features for each in rows()]).half())
        assert ": made again" in capsys.readouterr().out


def test_a_stop_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    make(path)
    before = path.read_bytes()
    with pytest.raises(AssertionError):
        cached_features(path, {"step": 4}, never(), torch.float16)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_features_too_large_for_half_precision(tmp_path: Path) -> None:
    path, large = tmp_path / "features.safetensors", [RoIFeatures(torch.full((5, 4), 1e5), rows()[0].overlaps)]
    with pytest.raises(InputError, match="--precision float32"):
        cached_features(path, MADE_WITH, large, torch.float16)
    assert not list(tmp_path.iterdir())
    assert cached_features(path, MADE_WITH, large, torch.float32).features.max() == 1e5


def test_no_roi_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no RoI"):
        cached_features(tmp_path / "features.safetensors", MADE_WITH, rows()[1:2], torch.float16)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make(tmp_path / "taken" / "features.safetensors")
