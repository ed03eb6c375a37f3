"""Small detectors of MONAI in 2-D and 3-D, with mini-batches for them."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.integrations.optional import import_quietly

CLASSES = 3  # labels 0 to 2
SIZE = {2: 64, 3: 16}
Target = dict[str, Tensor]


class Network(nn.Module):
    """Computes scores and regressions on two feature maps, of 8 and 4 cells a side (in 3-D, 4 and 2)."""

    num_classes, cls_key, box_reg_key = CLASSES, "classification", "box_regression"

    def __init__(self, dims: int, num_anchors: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.spatial_dims, self.num_anchors, self.size_divisible = dims, num_anchors, SIZE[dims]
        stride = SIZE[dims] // (8 if dims == 2 else 4)
        self.stem = nn.Sequential(conv(1, 8, stride, stride=stride), norm(8), nn.ReLU())
        self.down = conv(8, 8, 2, stride=2)
        self.scores = conv(8, CLASSES * num_anchors, 1)
        self.boxes = conv(8, 2 * dims * num_anchors, 1)

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        fine = self.stem(images)
        maps = [fine, self.down(fine)]
        return {self.cls_key: [*map(self.scores, maps)], self.box_reg_key: [*map(self.boxes, maps)]}


def make(dims: int = 2) -> Any:
    """Returns a detector in train mode, with the same weights each time and without a sampler."""
    anchors = import_quietly("monai.apps.detection.utils.anchor_utils")
    detectors = import_quietly("monai.apps.detection.networks.retinanet_detector")
    torch.manual_seed(0)
    shapes = [[SIZE[dims] // 4] * dims, [SIZE[dims] // 2] + [SIZE[dims] // 4] * (dims - 1)]
    generator = anchors.AnchorGeneratorWithAnchorShape((1, 2), shapes)
    network = Network(dims, len(shapes))
    for convolution in (network.scores, network.boxes):
        nn.init.normal_(convolution.weight, std=0.3)
    detector = detectors.RetinaNetDetector(network, generator)
    detector.set_regular_matcher(0.5, 0.3)
    detector.set_box_selector_parameters(score_thresh=0.0, topk_candidates_per_level=5)
    # The detector keeps the anchors of the last size of images.
    with torch.no_grad():
        detector.eval()(batch("two images", dims)[0])
    return detector.train()


def target(*corners: tuple[int, int], dims: int, labels: list[int] | None = None) -> Target:
    """Returns objects from (start, start, ...) to (end, end, ...), in sixteenths of the image."""
    unit = SIZE[dims] / 16
    boxes = [[start * unit] * dims + [end * unit] * dims for start, end in corners]
    given = labels if labels is not None else [i % CLASSES for i in range(len(corners))]
    return {"boxes": torch.tensor(boxes).reshape(-1, 2 * dims), "labels": torch.tensor(given, dtype=torch.int64)}


BATCHES: dict[str, list[list[tuple[int, int]]]] = {
    "two images": [[(1, 6), (8, 15)], [(5, 11)]],
    "no object": [[], []],
    "one object": [[(2, 9)], []],
}


def batch(name: str, dims: int = 2) -> tuple[list[Tensor], list[Target]]:
    """Returns images and their targets."""
    rng = torch.Generator().manual_seed(1)
    images = [torch.rand(1, *[SIZE[dims]] * dims, generator=rng) for _ in BATCHES[name]]
    return images, [target(*corners, dims=dims) for corners in BATCHES[name]]
