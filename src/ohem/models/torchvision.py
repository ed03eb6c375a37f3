"""torchvision's detectors, made from a recipe, and called as `FastRCNN` is."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection import FasterRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.ops import FrozenBatchNorm2d

from ohem.config.schema import Recipe
from ohem.detection.backbones.base import IMAGENET, Normalisation
from ohem.detection.backbones.torchvision import INPUT
from ohem.detection.detector import Detector
from ohem.detection.weights import load_stages, stated_input
from ohem.integrations import with_ohem
from ohem.models.shared_batch import PaddingTransform, number_trained_on, prepare_shared
from ohem.rois import ignored
from ohem.samplers import RoISampler


class TorchvisionDetector(Detector):
    """A detector of torchvision. It does not use the proposals, since it makes its own.

    Its `state_dict` is that of `model`, so that checkpoints load into torchvision's model and back.

    Args:
        model: any of torchvision's detectors.
        mined: whether `with_ohem` changed it: then it handles objects that are marked `ignore`. Otherwise these are
            removed from its targets, as torchvision's training scripts remove crowds.
    """

    def __init__(self, model: nn.Module, mined: bool) -> None:
        super().__init__()
        self.model, self.mined = model, mined

    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Returns losses in train mode and detections in eval mode."""
        dtype = next(self.parameters(), torch.empty(0)).dtype
        scaled = [image.to(dtype) / 255 for image in images]
        if targets is not None and not self.mined:
            targets = [_without_ignored(target) for target in targets]
        if isinstance(transform := getattr(self.model, "transform", None), PaddingTransform):
            transform.least_size = self.least_size
        outputs: dict[str, Tensor] | list[dict[str, Tensor]] = self.model(scaled, targets)
        return outputs

    def detect(
        self, images: Sequence[Tensor], scales: Sequence[float], proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detects objects in one image, which is given in one size."""
        (image,), (scale,) = images, scales
        ((detections),) = self.forward([image], [proposals])
        assert isinstance(detections, dict)  # in eval mode
        height, width = size
        limit = detections["boxes"].new_tensor([width, height, width, height])
        return {**detections, "boxes": torch.minimum(detections["boxes"] / scale, limit)}

    def network_image(self, image: Tensor) -> Tensor:
        """Returns `image`, uint8 (3, H, W), resized as torchvision's detector resizes it."""
        transform: Any = self.model.transform
        with torch.random.fork_rng(devices=[]):  # it draws one of its sizes, of which there is one
            resized, _ = transform.resize(image.float() / 255, None)
        return (resized * 255).round().clamp(0, 255).to(torch.uint8)  # type: ignore[no-any-return]

    def network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns (height, width) to which torchvision's detector resizes an image of `size` (height, width)."""
        transform: Any = self.model.transform
        with torch.random.fork_rng(devices=[]):
            resized, _ = transform.resize(torch.empty(3, *size, device="meta"), None)
        height, width = resized.shape[-2:]
        return height, width

    def number_trained_on(self, loss: str) -> Tensor | int:
        """Returns the number of RoIs or anchors of the last mini-batch that `loss` was divided by; 0 if by 1."""
        return number_trained_on(self.model, loss)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the state dict of torchvision's model."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loads a state dict of torchvision's model."""
        return self.model.load_state_dict(state_dict, *args, **kwargs)


def _without_ignored(target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = ~ignored(target)
    return {name: target[name][kept] for name in ("boxes", "labels")}


class Stages(NamedTuple):
    """A classification network as torchvision's detectors divide it into stages."""

    make: Callable[..., nn.Module]
    number: int
    prefix: str
    """Prefix of the names in published weights."""
    input: Normalisation = IMAGENET
    """Input normalisation of weights that do not state it."""


STAGES: Mapping[str, Stages] = {
    "resnet50": Stages(resnet_fpn_backbone, 5, ""),
    "mobilenet_v2": Stages(partial(mobilenet_backbone, fpn=True), 6, "features.", INPUT),
    "mobilenet_v3_large": Stages(partial(mobilenet_backbone, fpn=True), 6, "features."),
}
TRAINED = 3  # pre-trained stages that are trained, as torchvision's default
# Of torchvision's fasterrcnn_mobilenet_v3_large_320_fpn.
MOBILE_RPN = {"rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150, "rpn_score_thresh": 0.05}
MOBILE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # of its ssdlite320_mobilenet_v3_large
MOBILE_ANCHORS = ((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3


def build_torchvision(
    recipe: Recipe, sampler: RoISampler, rpn_sampler: RoISampler | None = None
) -> TorchvisionDetector:
    """Makes the detector with random weights.

    `sampler` mines in it unless the recipe has the sampler "builtin", and `rpn_sampler` among its anchors, if any.
    """
    model = {"faster_rcnn": _faster_rcnn, "ssdlite": _ssdlite}[recipe.model.detector](recipe)
    mined = rpn_sampler is not None or recipe.sampler.name != "builtin"
    if rpn_sampler is not None:
        with_ohem(model, sampler, rpn_sampler=rpn_sampler)
    elif mined:
        with_ohem(model, sampler)
    prepare_shared(model)
    return TorchvisionDetector(model, mined)


def load_pretrained(detector: TorchvisionDetector, recipe: Recipe) -> None:
    """Loads the weights that the recipe names into the stages of the backbone.

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
    """Makes the models of torchvision's `fasterrcnn_resnet50_fpn` and `fasterrcnn_mobilenet_v3_large_320_fpn`."""
    config, test = recipe.model, recipe.test
    stages = STAGES[config.backbone]
    pretrained = config.weights != "none"
    backbone = stages.make(
        backbone_name=config.backbone,
        weights=None,
        # Statistics of batches of two images are too noisy; but a training from scratch has no others.
        norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d,
        trainable_layers=TRAINED if pretrained else stages.number,
    )
    given = {
        "box_batch_size_per_image": recipe.sampler.batch_size,
        "box_positive_fraction": recipe.sampler.fg_fraction,
        "rpn_batch_size_per_image": config.rpn_batch_size,
        "rpn_score_thresh": config.rpn_score_thresh,
    }
    mobile = {} if config.backbone == "resnet50" else MOBILE_RPN
    model: nn.Module = FasterRCNN(
        backbone,
        len(recipe.data.classes) + 1,
        min_size=recipe.data.short,
        max_size=recipe.data.long,
        **_input(recipe),
        **mobile | {name: value for name, value in given.items() if value is not None},
        rpn_anchor_generator=AnchorGenerator(*MOBILE_ANCHORS) if mobile else None,
        box_score_thresh=test.score,
        box_nms_thresh=test.nms_iou,
        box_detections_per_img=test.max_detections,
    )
    return model


def _ssdlite(recipe: Recipe) -> nn.Module:
    """Makes the model of torchvision's `ssdlite320_mobilenet_v3_large`."""
    test, classes = recipe.test, len(recipe.data.classes) + 1
    options = {"score_thresh": test.score, "nms_thresh": test.nms_iou, "detections_per_img": test.max_detections}
    if recipe.model.weights == "none":
        model: nn.Module = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=classes, **options
        )
        return model
    # Published weights have a wider last stage than random ones; torchvision's function makes it only with weights.
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
    """Makes the extractor of SSDlite from `stages`, divided in the last stage that halves the map."""
    halving = [i for i, stage in enumerate(stages) if getattr(stage, "_is_cn", False)]
    return SSDLiteFeatureExtractorMobileNet(stages, halving[-1], MOBILE_NORM)


def _input(recipe: Recipe) -> dict[str, list[float]]:
    """Returns mean and std of the input normalisation of the weights, in units of 0-1."""
    config = recipe.model
    normalisation = IMAGENET
    if config.weights != "none":
        normalisation = stated_input(config.weights, config.backbone) or STAGES[config.backbone].input
    return {"image_mean": [m / 255 for m in normalisation.mean], "image_std": [s / 255 for s in normalisation.std]}
