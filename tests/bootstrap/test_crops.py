"""Crops of R-CNN: how they are warped, their features, and which of them are positives and negatives."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from ohem.bootstrap.box_regression import BoxRegression
from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.crops import AT_ONCE, CropDetector, crop_features, warped
from ohem.bootstrap.run import use_boxes, use_svms
from ohem.bootstrap.svm import LinearSVM
from ohem.boxes import decode
from ohem.data.loader import prepare_example
from ohem.detection.backbones import Backbone, tiny, vgg16
from ohem.detection.backbones.base import Pretrained
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.post_process import PostProcess


def numbers(height: int = 8, width: int = 8) -> Tensor:
    """Returns an image (1, H, W) whose pixel in row y and column x is 100 + 10 y + x."""
    return 100 + 10 * torch.arange(float(height))[None, :, None] + torch.arange(float(width))


def crop_of(box: list[float], size: int, context: int, image: Tensor | None = None) -> list[list[float]]:
    image = numbers() if image is None else image
    crop: list[list[float]] = warped(image, torch.tensor([box]).float(), size, context)[0, 0].tolist()
    return crop


# Warping


def test_a_box_of_the_size_of_a_crop_is_the_image_there() -> None:
    assert crop_of([2, 3, 6, 7], 4, 0) == numbers()[0, 3:7, 2:6].tolist()


def test_context_is_the_image_around_the_box_in_the_same_scale() -> None:
    """A crop of 4 pixels with 1 pixel of context: the box of 2 pixels is the middle of it."""
    assert crop_of([3, 4, 5, 6], 4, 1) == numbers()[0, 3:7, 2:6].tolist()


def test_outside_the_image_is_the_mean() -> None:
    corner = numbers()[0, :3, :3].tolist()
    assert crop_of([0, 0, 2, 2], 4, 1) == [[0, 0, 0, 0], *([0, *row] for row in corner)]
    corner = numbers()[0, 5:, 5:].tolist()
    assert crop_of([6, 6, 8, 8], 4, 1) == [*([*row, 0] for row in corner), [0, 0, 0, 0]]


def test_both_sides_are_warped_to_the_same_length() -> None:
    """Eight columns and four rows become two of both: a value is the mean of the two pixels around its centre."""
    assert crop_of([0, 2, 8, 6], 2, 0) == [[126.5, 130.5], [146.5, 150.5]]


def test_a_large_crop_repeats_the_border_up_to_the_end_of_the_image() -> None:
    image = torch.tensor([[[10.0, 20.0]]])
    assert crop_of([0, 0, 2, 1], 4, 0, image) == [[10, 12.5, 17.5, 20]] * 4


def test_every_box_has_its_own_crop() -> None:
    image, boxes = torch.rand(3, 20, 30), torch.rand(7, 2, 2).sort(dim=1).values.flatten(1) * 20
    crops = warped(image, boxes, 8, 2)
    assert crops.shape == (7, 3, 8, 8)
    for box, crop in zip(boxes, crops, strict=True):
        assert torch.equal(warped(image, box[None], 8, 2)[0], crop)


# Features


def detector(backbone: Backbone | None = None, refinement: BoxRefinement | None = None) -> CropDetector:
    torch.manual_seed(0)
    post_process = PostProcess(score=0.5, nms_iou=0.5)
    model = CropDetector(backbone or tiny(16), 3, size=32, context=4, post_process=post_process, refinement=refinement)
    return model.eval()


def image_of(height: int = 40, width: int = 60) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


BOX = [[8.0, 8, 24, 24]]


@torch.no_grad()
def test_features_of_a_new_head_are_the_means_of_the_channels() -> None:
    model = detector()
    crop = warped(model.backbone.normalise(image_of()), torch.tensor(BOX), 32, 4)
    expected = model.backbone.features(crop).mean(dim=(2, 3))
    torch.testing.assert_close(model.features(image_of(), torch.tensor(BOX)), expected)
    assert expected.shape == (1, model.backbone.channels)


@torch.no_grad()
def test_features_of_a_published_head_are_its_own() -> None:
    backbone = tiny(16)
    backbone.pretrained = Pretrained(names={"features.": "features.", "roi_head.": "classifier."})
    model = detector(backbone)
    crop = warped(backbone.normalise(image_of()), torch.tensor(BOX), 32, 4)
    expected = backbone.roi_head(adaptive_max_pool2d(backbone.features(crop), 5))
    torch.testing.assert_close(model.features(image_of(), torch.tensor(BOX)), expected)
    assert expected.shape == (1, 16)


def test_the_pooling_of_a_crop_is_that_of_the_published_networks() -> None:
    """At 224 pixels VGG16 has 14 x 14 cells before pool5, and VGG_CNN_M_1024 has 13 x 13."""
    vgg, vggm = torch.rand(1, 2, 14, 14), torch.rand(1, 2, 13, 13)
    assert torch.equal(adaptive_max_pool2d(vgg, 7), max_pool2d(vgg, 2))
    assert torch.equal(adaptive_max_pool2d(vggm, 6), max_pool2d(vggm, 3, 2))
    with torch.device("meta"):
        features = vgg16().features(torch.empty(1, 3, 224, 224))
    assert features.shape[2:] == (14, 14)


@torch.no_grad()
def test_crops_go_through_the_network_in_parts() -> None:
    model = detector()
    boxes = torch.rand(AT_ONCE + 3, 2, 2).sort(dim=1).values.flatten(1) * 40
    features = model.features(image_of(), boxes)
    torch.testing.assert_close(features[-2:], model.features(image_of(), boxes[-2:]))
    assert model.features(image_of(), boxes[:0]).shape == (0, model.backbone.channels)


def test_positives_are_objects_and_negatives_overlap_them_little() -> None:
    """Boxes of one height: their widths give the IoU. The second is the object again, and no example of its own."""
    boxes = torch.tensor([[0.0, 0, 39, 20], [0, 0, 20, 20], [0, 0, 13, 20], [0, 0, 11, 20], [20, 20, 60, 40]])
    proposals = torch.cat([boxes[:1], torch.tensor([[0.0, 0, 40, 20]]), boxes[1:]])
    target = {
        "boxes": torch.tensor([[0.0, 0, 40, 20]]),
        "labels": torch.tensor([2]),
        "ignore": torch.tensor([False]),
    }
    example = prepare_example("a", image_of(), proposals.numpy(), target, short=40, long=60)
    model = detector()
    rows = crop_features(model, example)
    defaults = BootstrapConfig()
    signs = rows.overlaps.signs(defaults.positive_iou, defaults.negative_iou)
    assert signs[:, 1].tolist() == [1, 0, 0, 0, -1, -1]
    assert signs[:, 0].tolist() == [-1] * 6
    assert rows.features.shape == (6, model.backbone.channels)
    assert rows.targets is not None
    moved = decode(torch.cat([target["boxes"], boxes]), rows.targets[:, None])[:, 0]
    torch.testing.assert_close(moved[:3], target["boxes"].repeat(3, 1))
    assert not rows.targets[3:].any()


# Detection


def fitted(refinement: BoxRefinement | None = None) -> CropDetector:
    """Returns a detector that takes everything for class 1, never for class 2, and moves boxes by half their width."""
    model = detector(refinement=refinement)
    nothing = torch.zeros(model.backbone.channels).double().numpy()
    use_svms(model, [LinearSVM(nothing, 2.0, 0, 1, 1, 1, ""), None])
    shift = torch.tensor([0.5, 0, 0, 0]).double().numpy()
    use_boxes(model, [BoxRegression(nothing[:, None].repeat(4, axis=1), shift, 1), None])
    return model


@torch.no_grad()
def test_detections_are_moved_boxes_with_the_scores_of_the_svms() -> None:
    # The image is twice as large as that which the proposals are of.
    detections = fitted().detect([image_of()], [2.0], torch.tensor(BOX) / 2, (20, 30))
    assert detections["boxes"].tolist() == [[8, 4, 16, 12]]
    assert detections["labels"].tolist() == [1]
    torch.testing.assert_close(detections["scores"], torch.tensor([2.0]).sigmoid())


@torch.no_grad()
def test_boxes_may_be_cropped_and_moved_again() -> None:
    model = fitted(BoxRefinement(2, voting=False))
    detections = model.detect([image_of()], [1.0], torch.tensor(BOX), (40, 60))
    assert sorted(detections["boxes"].tolist()) == [[16, 8, 32, 24], [24, 8, 40, 24]]


@torch.no_grad()
def test_an_image_without_proposals_has_no_detection() -> None:
    assert fitted().detect([image_of()], [1.0], torch.zeros(0, 4), (40, 60))["boxes"].shape == (0, 4)


def test_it_is_not_trained_by_gradients() -> None:
    with pytest.raises(TypeError, match="call detect"):
        detector()([image_of()], [torch.tensor(BOX)])
