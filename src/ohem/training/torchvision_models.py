"""torchvision's detectors as a recipe describes them: what its own constructors make, with our data and settings."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import FasterRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.ops import FrozenBatchNorm2d

from ohem.detection.backbones.base import IMAGENET, Normalisation
from ohem.detection.backbones.mobilenet import INPUT
from ohem.detection.weights import load_stages, stated_input
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
MOBILE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # of its ssdlite320_mobilenet_v3_large
MOBILE_ANCHORS = ((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3


def build_torchvision(recipe: Recipe, sampler: RoISampler) -> TorchvisionDetector:
    """The detector with random weights, `sampler` mining in it unless the recipe asks for what it does by itself."""
    model = {"faster_rcnn": _faster_rcnn, "ssdlite": _ssdlite}[recipe.model.detector](recipe)
    mined = recipe.sampler.name != "own"
    return TorchvisionDetector(with_ohem(model, sampler) if mined else model, mined)


def load_pretrained(detector: TorchvisionDetector, recipe: Recipe) -> None:
    """Fills the stages of the backbone with the weights that the recipe names.

    Raises:
        InputError: they cannot be read, or are of another network.
    """
    config = recipe.model
    if config.weights == "none":
        return
    if config.detector == "faster_rcnn":
        stages = detector.model.get_submodule("backbone.body")
        load_stages(stages, config.weights, config.backbone, STAGES[config.backbone].prefix)
    else:
        whole = _mobile_stages()
        load_stages(whole, config.weights, config.backbone, "features.")
        filled = _mobile_extractor(whole).get_submodule("features")
        detector.model.get_submodule("backbone.features").load_state_dict(filled.state_dict())


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
    """What torchvision's `ssdlite320_mobilenet_v3_large` makes."""
    test, classes = recipe.test, len(recipe.data.classes) + 1
    options = {"score_thresh": test.score, "nms_thresh": test.nms_iou, "detections_per_img": test.max_detections}
    if recipe.model.weights == "none":
        model: nn.Module = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes, **options
        )
        return model
    # Published weights have a wider last stage than random ones, and its function builds it only to fill it at once.
    backbone, size = _mobile_extractor(_mobile_stages()), (320, 320)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    channels = retrieve_out_channels(backbone, size)
    head = SSDLiteHead(channels, anchors.num_anchors_per_location(), classes, MOBILE_NORM)
    half = [0.5] * 3
    return SSD(  # type: ignore[no-any-return]
        backbone, anchors, size, classes, half, half, head, topk_candidates=300, **options
    )


def _mobile_stages() -> nn.Sequential:
    stages: nn.Sequential = mobilenet_v3_large(weights=None, norm_layer=MOBILE_NORM).features
    return stages


def _mobile_extractor(stages: nn.Sequential) -> SSDLiteFeatureExtractorMobileNet:
    """`stages` with SSDlite's own behind them, taken apart in the last that halves the map."""
    halving = [i for i, stage in enumerate(stages) if getattr(stage, "_is_cn", False)]
    return SSDLiteFeatureExtractorMobileNet(stages, halving[-1], MOBILE_NORM)


def _input(recipe: Recipe) -> dict[str, list[float]]:
    """Mean and std of the pixels that the weights were trained with, in units of 0-1."""
    config = recipe.model
    found = IMAGENET
    if config.weights != "none":
        found = stated_input(config.weights, config.backbone) or STAGES[config.backbone].input
    return {"image_mean": [m / 255 for m in found.mean], "image_std": [s / 255 for s in found.std]}
