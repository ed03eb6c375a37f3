"""torchvision's detectors as a recipe describes them: what its own constructors make, with our data and settings."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import nn
from torchvision.models.detection import FasterRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from ohem.detection.backbones.base import IMAGENET, Normalisation
from ohem.detection.backbones.mobilenet import INPUT
from ohem.detection.weights import downloading, load_stages, stated_input, torchvision_weights
from ohem.integrations import with_ohem
from ohem.samplers import RoISampler
from ohem.training.adapted import TorchvisionDetector
from ohem.training.config import Recipe


class Stages(NamedTuple):
    """A classification network as torchvision's detectors take it apart."""

    make: Callable[..., nn.Module]
    number: int
    prefix: str
    """What published weights have before the names in the stages."""
    input: Normalisation = IMAGENET
    """Of weights that do not say which."""


STAGES: Mapping[str, Stages] = {
    "resnet50": Stages(resnet_fpn_backbone, 5, ""),
    "mobilenet_v2": Stages(partial(mobilenet_backbone, fpn=True), 6, "features.", INPUT),
    "mobilenet_v3_large": Stages(partial(mobilenet_backbone, fpn=True), 6, "features."),
}
TRAINED = 3  # of pre-trained stages: torchvision's default
# Of torchvision's fasterrcnn_mobilenet_v3_large_320_fpn.
MOBILE_RPN = {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150, "rpn_score_thresh": 0.05}
MOBILE_ANCHORS = ((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3


def build_torchvision(recipe: Recipe, sampler: RoISampler) -> TorchvisionDetector:
    """The detector, `sampler` mining in it unless the recipe asks for what it does by itself.

    Its weights are random, but for SSDlite's backbone, which torchvision fills as it makes it.

    Raises:
        InputError: the weights of SSDlite's backbone cannot be fetched.
    """
    model = {"faster_rcnn": _faster_rcnn, "ssdlite": _ssdlite}[recipe.model.detector](recipe)
    mined = recipe.sampler.name != "own"
    return TorchvisionDetector(with_ohem(model, sampler) if mined else model, mined)


def load_pretrained(detector: TorchvisionDetector, recipe: Recipe) -> None:
    """Fills the stages of the backbone with the weights that the recipe names.

    Raises:
        InputError: they cannot be read, or are of another network.
    """
    config = recipe.model
    if config.detector == "faster_rcnn" and config.weights != "none":  # SSDlite is built with them
        stages = detector.model.get_submodule("backbone.body")
        load_stages(stages, config.weights, config.backbone, STAGES[config.backbone].prefix)


def _faster_rcnn(recipe: Recipe) -> nn.Module:
    """What torchvision's `fasterrcnn_resnet50_fpn` and `fasterrcnn_mobilenet_v3_large_320_fpn` make, and its like."""
    config, test = recipe.model, recipe.test
    stages = STAGES[config.backbone]
    pretrained = config.weights != "none"
    backbone = stages.make(
        backbone_name=config.backbone,
        weights=None,
        # The statistics of batches of two images are too noisy to learn; from scratch there are no others.
        norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d,
        trainable_layers=TRAINED if pretrained else stages.number,
    )
    mobile = {} if config.backbone == "resnet50" else MOBILE_RPN
    model: nn.Module = FasterRCNN(
        backbone,
        len(recipe.data.classes) + 1,
        min_size=recipe.data.short,
        max_size=recipe.data.long,
        **_input(recipe),
        **mobile,
        rpn_anchor_generator=AnchorGenerator(*MOBILE_ANCHORS) if mobile else None,
        box_score_thresh=test.score,
        box_nms_thresh=test.nms_iou,
        box_detections_per_img=test.max_detections,
        box_batch_size_per_image=recipe.sampler.batch_size,
        box_positive_fraction=recipe.sampler.fg_fraction,
    )
    return model


def _ssdlite(recipe: Recipe) -> nn.Module:
    """Of pre-trained weights it has a wider last stage, which torchvision makes only if it loads them itself."""
    source, test = recipe.model.weights, recipe.test
    weights = None if source == "none" else torchvision_weights(recipe.model.backbone, source)
    with downloading(weights, source):
        model: nn.Module = ssdlite320_mobilenet_v3_large(
            weights=None,
            weights_backbone=weights,
            num_classes=len(recipe.data.classes) + 1,
            score_thresh=test.score,
            nms_thresh=test.nms_iou,
            detections_per_img=test.max_detections,
        )
    return model


def _input(recipe: Recipe) -> dict[str, list[float]]:
    """Mean and std of the pixels that the weights were trained with, in units of 0-1."""
    config = recipe.model
    found = IMAGENET
    if config.weights != "none":
        found = stated_input(config.weights, config.backbone) or STAGES[config.backbone].input
    return {"image_mean": [m / 255 for m in found.mean], "image_std": [s / 255 for s in found.std]}
