"""R-CNN (Girshick et al., CVPR 2014): a classification network on a warped crop of the image for each proposal.

Shapes: P: boxes   R: RoIs of an image   S: side of a crop   D: features   K: classes
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.features import Overlaps, RoIFeatures, overlaps_of
from ohem.config.methods import replace_options
from ohem.config.schema import Recipe
from ohem.data.loader import Example, Examples, ImagePyramid, ImagePyramids, make_pyramid, prepare_example
from ohem.detection.backbones import Backbone
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.post_process import BoxScores, PostProcess
from ohem.rois import match

AT_ONCE = 16
"""Number of crops that go through the network at once."""


def warped(image: Tensor, boxes: Tensor, size: int, context: int) -> Tensor:
    """Warps each box of an image, with the pixels around it, to a square; what is outside the image is 0.

    The side of a box becomes `size` - 2 `context` pixels, whatever its aspect ratio; the `context` pixels around it are
    those of the image around the box, in the same scale (R-CNN, appendix A). A pixel of the crop has the bilinear value
    of the image at its centre.

    Args:
        image: float (C, H, W), from which the mean is subtracted: 0 is the mean.
        boxes: float (P, 4) in pixels of the image.
        size: S.
        context: pixels of the crop on each side of the box, less than half of S.

    Returns:
        (P, C, S, S).
    """
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * size / (size - 2 * context)
    corners = torch.cat([middle - half, middle + half], dim=1)
    crops: Tensor = roi_align(image[None], [corners], size, sampling_ratio=1, aligned=True)
    # RoIAlign repeats the last pixel of the image, up to half a pixel beyond it.
    centres = (torch.arange(size, device=boxes.device) + 0.5) / size
    x, y = (corners[:, [i]] + centres * 2 * half[:, [i]] for i in (0, 1))
    columns, rows = ((place >= 0) & (place < side) for place, side in ((x, image.shape[2]), (y, image.shape[1])))
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return crops.mul_(inside)


class CropDetector(Detector):
    """A detector that classifies the features of crops by linear functions: `scores` and `deltas`, 0 at first.

    The features are those before the classifier of the network: of the RoI network where published weights fill it (fc7
    of VGG16, the pooled layer4 of ResNet-50), else the means of the channels of the last feature map (SqueezeNet,
    MobileNetV2).

    Args:
        backbone: the classification network.
        num_classes: K + 1.
        size, context: as for `warped`.
        post_process: makes detections from scores and regressions.
        refinement: iterative box regression with voting; None switches both off.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        size: int,
        context: int,
        post_process: PostProcess,
        refinement: BoxRefinement | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.size, self.context = size, context
        self.post_process, self.refinement = post_process, refinement
        self.probabilities = torch.sigmoid
        self.by_head = backbone.new_layer() is None
        self.dim = backbone.dim if self.by_head else backbone.channels
        self.scores, self.deltas = nn.Linear(self.dim, num_classes), nn.Linear(self.dim, 4 * num_classes)
        for parameter in (*self.scores.parameters(), *self.deltas.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, images: Sequence[Tensor], proposals: Sequence[Tensor], targets: Any = None) -> NoReturn:
        """Raises `TypeError`: it is not trained by gradients, and `detect` detects."""
        raise TypeError("CropDetector has no forward pass: call detect")

    def features(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Computes the features (P, D) of boxes (P, 4) of an image, uint8 RGB (3, H, W)."""
        pixels = self.backbone.normalise(image)
        if not len(boxes):
            return pixels.new_zeros(0, self.dim)
        crops = (warped(pixels, part, self.size, self.context) for part in torch.split(boxes, AT_ONCE))
        return torch.cat([self._features_of(part) for part in crops])

    def _features_of(self, crops: Tensor) -> Tensor:
        crops = crops.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.backbone.features(crops) * self.backbone.feature_scale
        if not self.by_head:
            return features.mean(dim=(2, 3))
        hidden: Tensor = self.backbone.roi_head(functional.adaptive_max_pool2d(features, self.backbone.pool_size))
        return hidden

    def detect(
        self, images: Sequence[Tensor], scales: Sequence[float], proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detects objects in one image, the first of `images`; see `FastRCNN.detect`."""

        def score_boxes(boxes: Tensor) -> BoxScores:
            hidden = self.features(images[0], boxes * scales[0])
            deltas = self.deltas(hidden).unflatten(1, (self.num_classes, 4))
            return BoxScores(self.probabilities(self.scores(hidden)), deltas)

        if self.refinement is not None:
            return self.refinement([score_boxes], proposals, size, self.post_process)
        return self.post_process(*score_boxes(proposals), proposals, size)


def as_crop_detector(model: FastRCNN, config: BootstrapConfig) -> CropDetector:
    """Returns the detector of R-CNN with the backbone and the test options of `model`, on its device."""
    detector = CropDetector(
        model.backbone,
        model.num_classes,
        size=config.crop_size,
        context=config.crop_context,
        post_process=model.post_process,
        refinement=model.refinement,
    )
    return detector.to(model.device).eval()


def with_crops(recipe: Recipe, config: BootstrapConfig) -> Recipe:
    """Returns `recipe` with at most `config.crop_proposals` proposals, and images in their own size."""
    top = min(recipe.proposals.top, config.crop_proposals)
    return replace_options(recipe, proposals={"top": top}, test={"scales": ()})


@torch.inference_mode()
def crop_features(model: CropDetector, example: Example) -> RoIFeatures:
    """Computes the features, overlaps and regression targets of the R RoIs of an image; equal boxes are one RoI."""
    target = {name: value.to(model.device) for name, value in example.target.items()}
    plain: Mapping[str, Any] = {"mean": [0.0] * 4, "std": [1.0] * 4}
    rois = match([example.proposals.to(model.device)], [target], **plain)
    rois = rois[_first_of_equals(rois.boxes)]
    overlaps = Overlaps(*(part.cpu() for part in overlaps_of(rois, target, model.num_classes - 1)))
    return RoIFeatures(model.features(example.image, rois.boxes).cpu(), overlaps, rois.targets.cpu())


def _first_of_equals(boxes: Tensor) -> Tensor:
    """Returns the places of `boxes` (R, 4) that no equal box precedes, ascending."""
    _, which = torch.unique(boxes, dim=0, return_inverse=True)
    places = torch.arange(len(boxes), device=boxes.device)
    first = torch.full_like(places, len(boxes)).scatter_reduce(0, which, places, "amin")
    return first[first < len(boxes)].sort().values


def whole_example(examples: Examples, index: int) -> Example:
    """Returns image `index` in its own size."""
    data = examples.data
    image, boxes = data.image(index), examples.proposals[data.ids[index]][: examples.top]
    short, long = sorted(image.shape[1:])
    return prepare_example(data.ids[index], image, boxes, data.target(index), short=short, long=long)


def whole_images(examples: Examples, recipe: Recipe) -> ImagePyramids:
    """Returns the images of `examples` in their own size, for `CropDetector.detect`; `recipe` does not matter."""
    return _WholeImages(examples, shorts=(), long=0)


class _WholeImages(ImagePyramids):
    def __getitem__(self, index: int) -> ImagePyramid:
        data, name = self.examples.data, self.examples.data.ids[index]
        image, boxes = data.image(index), self.examples.proposals[name][: self.examples.top]
        short, long = sorted(image.shape[1:])
        return make_pyramid(name, image, boxes, shorts=(short,), long=long)
