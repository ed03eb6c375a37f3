"""Labels of anchors in torchvision's one-stage detectors with mining, and objects to ignore."""

import pytest
import torch

from ohem import AllSampler, RatioSampler, with_ohem
from tests.helpers.one_stage import LEFT, MAKE, RIGHT, batch, make, step, target

KINDS = pytest.mark.parametrize("kind", MAKE)


@KINDS
def test_anchors_are_labelled_by_the_matching_of_the_model(kind: str) -> None:
    model = with_ohem(make(kind), AllSampler())
    step(model, "two images")
    rois, per_image = model.mining.rois, len(model.mining.rois) // 2
    assert rois.num_images == 2
    assert rois.images.tolist() == [0] * per_image + [1] * per_image
    labels = {1, 2} if kind == "ssd" else {2, 3}
    assert set(rois.labels[:per_image].tolist()) - {-1, 0} == labels
    assert set(rois.labels[per_image:].tolist()) - {-1, 0} == {min(labels)}
    assert (rois.labels == -1).any() == (kind == "retinanet")
    assert rois.ious[rois.foreground].min() > 0
    assert rois.ious.max() <= 1
    assert rois.targets[rois.foreground].any(dim=1).all()
    assert not rois.targets[~rois.foreground].any()


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_classes_may_start_at_0(kind: str) -> None:
    """A head with a sigmoid has no background: its class 0 is foreground, and is trained as in torchvision."""
    own, mined = make(kind), with_ohem(make(kind), RatioSampler(1e9))
    images, _ = batch("two images")
    targets = [target(LEFT, labels=[0]), target(RIGHT, labels=[3])]
    torch.testing.assert_close(mined(images, targets), own(images, targets))
    assert set(mined.mining.rois.labels.tolist()) >= {0, 1, 4}


@KINDS
def test_ignored_object_is_neither_foreground_nor_mined(kind: str) -> None:
    model = with_ohem(make(kind), RatioSampler())
    images, targets = batch("two images")
    targets[0]["ignore"] = torch.tensor([False, True])
    model(images, targets)
    rois = model.mining.rois
    first = rois[rois.images == 0]
    assert set(first.labels.tolist()) == ({-1, 0, 1} if kind == "ssd" else {-1, 0, 2})
    inside = (first.boxes[:, :2] >= torch.tensor(RIGHT[:2])) & (first.boxes[:, 2:] <= torch.tensor(RIGHT[2:]))
    assert (first.labels[inside.all(dim=1)] == -1).all()
    assert first.ious[first.labels == -1].min() == 0
    assert not model.mining.losses[rois.labels == -1].any()


@pytest.mark.parametrize("kind", ["ssd", "retinanet"])
def test_anchor_matched_with_an_ignored_object_is_ignored(kind: str) -> None:
    """Covers a thin object, which is matched with the nearest anchor at a low IoU."""
    model = with_ohem(make(kind), AllSampler())
    images, targets = batch("two images")
    labels = []
    for ignored in (False, True):
        targets[0] = {**target([0, 30, 64, 34]), "ignore": torch.tensor([ignored])}
        model(images, targets)
        labels.append(model.mining.rois.labels[model.mining.rois.images == 0])
    assert (labels[0] > 0).any()
    assert (labels[1][labels[0] > 0] == -1).all()
