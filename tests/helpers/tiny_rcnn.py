"""Detectors of torchvision's R-CNN family that train in a few milliseconds, and mini-batches for them."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from tests.helpers.make_rois import random_boxes

CLASSES = 3  # with background
CHANNELS = 8
HEIGHT, WIDTH = 64, 96

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Pyramid(nn.Module):
    """Computes two feature maps, of stride 4 and 8."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, CHANNELS, 7, stride=4, padding=3)
        self.high = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        low = self.low(images).relu()
        return OrderedDict([("0", low), ("1", self.high(low))])


def faster_rcnn(seed: int = 0, **options: Any) -> FasterRCNN:
    """Returns a Faster R-CNN with the same weights for the same seed."""
    torch.default_generator.manual_seed(seed)
    return FasterRCNN(**_common(CLASSES), **options)


def mask_rcnn(seed: int = 0) -> MaskRCNN:
    torch.default_generator.manual_seed(seed)
    return MaskRCNN(
        **_common(CLASSES),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 6, 2),
        mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS,), 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES),
    )


def keypoint_rcnn(seed: int = 0) -> KeypointRCNN:
    torch.default_generator.manual_seed(seed)
    return KeypointRCNN(
        **_common(CLASSES),
        keypoint_roi_pool=MultiScaleRoIAlign(["0", "1"], 6, 2),
        keypoint_head=KeypointRCNNHeads(CHANNELS, (CHANNELS,)),
        keypoint_predictor=KeypointRCNNPredictor(CHANNELS, 2),
    )


def normalised_rcnn(seed: int = 0) -> FasterRCNN:
    """Returns a Faster R-CNN with batch norm in the box head, as in `fasterrcnn_resnet50_fpn_v2`."""
    model = faster_rcnn(seed)
    model.roi_heads.box_head = FastRCNNConvFCHead((CHANNELS, 3, 3), [CHANNELS], [16], norm_layer=nn.BatchNorm2d)
    return model


MODELS: dict[str, Callable[[], FasterRCNN]] = {
    "faster": faster_rcnn,
    "mask": mask_rcnn,
    "keypoint": keypoint_rcnn,
    "normalised": normalised_rcnn,
}


def mini_batch(objects: tuple[int, ...] = (3, 1), seed: int = 0) -> Batch:
    """Returns images and targets; each object has a mask and two keypoints."""
    rng = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, HEIGHT, WIDTH, generator=rng) for _ in objects]
    return images, [_target(random_boxes(n, rng, HEIGHT, WIDTH), rng) for n in objects]


def _target(boxes: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    corners = torch.stack([boxes[:, :2] + 2, boxes[:, 2:] - 2], dim=1)
    return {
        "boxes": boxes,
        "labels": torch.randint(1, CLASSES, (len(boxes),), generator=rng),
        "masks": masks,
        "keypoints": torch.cat([corners, torch.ones(len(boxes), 2, 1)], dim=2),
    }


def _common(classes: int) -> dict[str, Any]:
    """Returns options: no resizing, 60 proposals per image, and RoIs with an IoU of 1/3 to 1/2 ignored."""
    return {
        "backbone": Pyramid(),
        "num_classes": None,
        "min_size": HEIGHT,
        "max_size": WIDTH,
        "rpn_anchor_generator": AnchorGenerator(((16,), (32,)), ((1.0,), (1.0,))),
        "rpn_pre_nms_top_n_train": 200,
        "rpn_post_nms_top_n_train": 60,
        "rpn_post_nms_top_n_test": 60,
        "box_roi_pool": MultiScaleRoIAlign(["0", "1"], 3, 2),
        "box_head": TwoMLPHead(CHANNELS * 9, 16),
        "box_predictor": FastRCNNPredictor(16, classes),
        "box_fg_iou_thresh": 0.5,
        "box_bg_iou_thresh": 0.3,
    }


BATCHES = {
    "usual": mini_batch(),
    "the second has no object": mini_batch((3, 0)),
    "no object": mini_batch((0, 0)),
    "one object": mini_batch((1,)),
    "more objects than are chosen": mini_batch((12, 20)),
}


def step(model: nn.Module, batch: Batch, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Runs a training step. Returns the losses, and the gradient of every parameter that has one."""
    model.train().zero_grad()
    torch.default_generator.manual_seed(seed)
    losses = model(*batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients
