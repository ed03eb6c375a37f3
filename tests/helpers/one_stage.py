"""Small one-stage detectors of torchvision, with usual and unusual mini-batches for them."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from ohem import RoIs

CLASSES = 4  # background, or the unused class 0 of a head with sigmoid, included
SIZE = 64
Target = dict[str, Tensor]


class Backbone(nn.Module):
    """Computes two feature maps, of stride 8 and 16."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.out_channels = channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 8, stride=8), nn.BatchNorm2d(channels), nn.ReLU())
        self.down = nn.Conv2d(channels, channels, 2, stride=2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.stem(images)
        return OrderedDict(fine=fine, coarse=self.down(fine))


def make_ssd(**options: Any) -> SSD:
    backbone = Backbone()
    backbone.out_channels = [32, 32]  # type: ignore[assignment]
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.25, 0.5, 0.9])
    return SSD(backbone, boxes, (SIZE, SIZE), CLASSES, **options)


def make_retinanet(**options: Any) -> RetinaNet:
    anchors = AnchorGenerator(((12, 24), (32, 48)), ((0.5, 1.0, 2.0),) * 2)
    return RetinaNet(Backbone(), CLASSES, min_size=SIZE, max_size=SIZE, anchor_generator=anchors, **options)


def make_fcos(**options: Any) -> FCOS:
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(Backbone(), CLASSES, min_size=SIZE, max_size=SIZE, anchor_generator=anchors, **options)


MAKE: dict[str, Any] = {"ssd": make_ssd, "retinanet": make_retinanet, "fcos": make_fcos}


def make(kind: str, **options: Any) -> Any:
    """Returns the model in train mode, with the same weights each time, different scores and inexact boxes."""
    torch.default_generator.manual_seed(0)
    model = MAKE[kind](**options).train()
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    return model


def target(*boxes: list[float], labels: list[int] | None = None) -> Target:
    given = labels if labels is not None else [1 + i % (CLASSES - 1) for i in range(len(boxes))]
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(given, dtype=torch.int64)}


LEFT, RIGHT = [4.0, 6.0, 28.0, 34.0], [36.0, 20.0, 62.0, 60.0]
BATCHES: dict[str, list[Target]] = {
    "two images": [target(LEFT, RIGHT), target(RIGHT)],
    "one object": [target(LEFT), target()],
    "no object": [target(), target()],
    "many objects": [target(LEFT, RIGHT, [2, 2, 60, 60], [20, 20, 44, 44], [0, 30, 30, 62])] * 2,
    "the same object twice": [target(LEFT, LEFT), target(RIGHT)],
}


def images(count: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.rand(3, SIZE, SIZE, generator=rng) for _ in range(count)]


def batch(name: str) -> tuple[list[Tensor], list[Target]]:
    """Returns images and a fresh copy of their targets."""
    targets = [{key: value.clone() for key, value in one.items()} for one in BATCHES[name]]
    return images(len(targets)), targets


def step(model: Any, name: str) -> dict[str, Tensor]:
    """Runs forward and backward of the mini-batch `name`; returns the losses and leaves the gradients in the model."""
    model.zero_grad()
    losses: dict[str, Tensor] = model(*batch(name))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    return losses


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the gradient of every parameter that has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class NoneSampler:
    """Chooses nothing."""

    def __call__(self, rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)
