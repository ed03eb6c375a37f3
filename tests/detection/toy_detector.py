"""A small detector with losses that differ from RoI to RoI, mini-batches for it, and its gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ohem.detection.backbones import Backbone, Normalisation
from ohem.detection.fast_rcnn import FastRCNN
from ohem.samplers import OHEMSampler, RoISampler
from tests.helpers.make_rois import near, random_target

CLASSES = 3  # and background
STRIDE, POOL = 8, 2
Batch = tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]
Implementation = Literal["read_only", "loss_layer"]


def plain_head() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * POOL * POOL, 8), nn.ReLU())


def batch_norm_head() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), *plain_head())


def toy(head: nn.Module) -> Backbone:
    """Returns a backbone whose cells see their own 8 x 8 pixels alone, so that padding changes no cell of the image."""
    return Backbone(
        nn.Sequential(nn.Conv2d(3, 4, STRIDE, stride=STRIDE), nn.ReLU()),
        head,
        stride=STRIDE,
        channels=4,
        pool_size=POOL,
        dim=8,
        normalisation=Normalisation("rgb", (128.0,) * 3, (64.0,) * 3),
    )


def detector(
    sampler: RoISampler, implementation: Implementation = "read_only", head: nn.Module | None = None, **options: Any
) -> FastRCNN:
    """Returns a detector in train mode, with the same weights at each call, large enough for different losses."""
    torch.manual_seed(0)
    model = FastRCNN(toy(head or plain_head()), CLASSES + 1, sampler, implementation=implementation, **options)
    for layer in (model.scores, model.deltas):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return model.train()


def mini_batch(ignored: int = 1, proposals: int = 60) -> Batch:
    """Returns two images of different sizes, with an ignored region each."""
    rng = torch.Generator().manual_seed(3)
    sizes = ((96, 128), (80, 104))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=rng) for size in sizes]
    truths = [random_target(rng, CLASSES, ignored=ignored) for _ in images]
    return images, [near(truth, proposals, rng, *size) for truth, size in zip(truths, sizes, strict=True)], truths


def per_class() -> tuple[Tensor, Tensor]:
    """Returns a normalisation of the regression targets, mean and std (K + 1, 4)."""
    rng = torch.Generator().manual_seed(5)
    return torch.rand(CLASSES + 1, 4, generator=rng), 0.1 + torch.rand(CLASSES + 1, 4, generator=rng)


def nothing() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def losses_and_gradients(model: FastRCNN, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.zero_grad()
    losses = model(*batch)
    assert isinstance(losses, dict)
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@contextmanager
def rows_of_roi_network(model: FastRCNN) -> Iterator[list[tuple[int, bool]]]:
    """Records how many rows each call of the RoI network got, and whether it recorded a gradient."""
    seen: list[tuple[int, bool]] = []
    hook = model.backbone.roi_head.register_forward_hook(
        lambda _, inputs, output: seen.append((len(inputs[0]), output.requires_grad))
    )
    yield seen
    hook.remove()


MINERS = [
    OHEMSampler(8),
    OHEMSampler(8, per_image=False),
    OHEMSampler(16, suppress="label"),
    OHEMSampler(8, nms_iou=None),
    OHEMSampler(1000, nms_iou=0.3),
]
