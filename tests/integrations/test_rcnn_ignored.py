"""Objects to ignore, in torchvision's R-CNN detectors with mining."""

import pytest
import torch

from ohem import AllSampler, OHEMSampler, with_ohem
from tests.helpers.tiny_rcnn import faster_rcnn, mini_batch, step


def test_ignored_objects_are_neither_foreground_nor_background() -> None:
    model, (images, targets) = with_ohem(faster_rcnn(), AllSampler()), mini_batch((2, 2))
    targets = [{**target, "ignore": torch.tensor([True, False])} for target in targets]
    step(model, (images, targets))
    rois = model.mining.rois
    assert rois is not None
    for number, target in enumerate(targets):
        in_image = rois.images == number
        is_object = (rois.boxes[:, None] == target["boxes"][0]).all(dim=2)[:, 0] & in_image  # its ground-truth box
        assert rois.labels[is_object].tolist() == [-1]
        assert rois.labels[in_image].max() == target["labels"][1]
    assert not torch.isin(model.mining.chosen, torch.nonzero(rois.labels == -1)[:, 0]).any()
    model = with_ohem(faster_rcnn(), AllSampler())
    region = {"boxes": torch.tensor([[0.0, 0, 96, 64]]), "labels": torch.tensor([1]), "ignore": torch.tensor([True])}
    step(model, (images[:1], [region]))
    assert model.mining.rois is not None
    assert (model.mining.rois.labels == -1).all()  # all RoIs lie in the crowd
    assert len(model.mining.chosen) == 0


@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
def test_rpn_does_not_use_ignored_objects(key: str) -> None:
    model, (images, _) = with_ohem(faster_rcnn(), AllSampler()), mini_batch((2,))
    plain = {"boxes": torch.tensor([[10.0, 10, 30, 30], [60, 30, 80, 50]]), "labels": torch.tensor([1, 2])}
    anchors = [torch.cat([plain["boxes"], torch.tensor([[0.0, 0, 4, 4], [0, 0, 50, 50]])])]
    marked = {**plain, key: torch.tensor([1, 0])}
    (labels,), (matched,) = model.rpn.assign_targets_to_anchors(anchors, [marked])
    assert labels.tolist() == [-1, 1, 0, 0]  # the last anchor is much larger than the object
    assert torch.equal(matched[1], plain["boxes"][1])
    (usual,), _ = faster_rcnn().rpn.assign_targets_to_anchors(anchors, [plain])
    assert usual.tolist() == [1, 1, 0, 0]
    step(model, (images, [marked]))
    assert set(model.mining.rois.labels.unique().tolist()) >= {-1, 2}


def test_rpn_with_all_anchors_in_a_crowd_has_a_finite_loss() -> None:
    model, (images, _) = with_ohem(faster_rcnn(), OHEMSampler(8)), mini_batch((1,))
    region = {"boxes": torch.tensor([[-99.0, -99, 199, 199]]), "labels": torch.tensor([1]), "ignore": torch.tensor([1])}
    losses, _ = step(model, (images, [region]))
    assert all(loss.isfinite() for loss in losses.values())
