"""Makes the detector of a recipe: the paper's, or one of torchvision's."""

from dataclasses import asdict

from torch import distributed, nn

from ohem.config.schema import ModelConfig, Recipe, SamplerConfig, TestConfig
from ohem.data.loader import Examples
from ohem.detection.backbones import BACKBONES, init_head, with_pyramid
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.multiscale import nearest, union
from ohem.detection.post_process import PostProcess
from ohem.detection.regions import FOREGROUND, REGIONS, Region, Regions
from ohem.detection.weights import load_weights
from ohem.errors import InputError
from ohem.models.torchvision import TorchvisionDetector, build_torchvision, load_pretrained
from ohem.rois import match, target_statistics
from ohem.samplers import RoISampler, make_sampler

FROZEN = {"first": (), "convolutional": ("features",), "all": ("features", "roi_head")}
"""Submodules of the backbone that are not trained, besides the layers that its constructor freezes."""


def as_fast_rcnn(model: Detector, what: str) -> FastRCNN:
    """Returns `model` if it is a `FastRCNN`; else raises `InputError`, since `what` needs fixed RoIs."""
    if not isinstance(model, FastRCNN):
        raise InputError(
            f"{what} needs proposals that are the same at every step: it is for --model.detector fast_rcnn"
        )
    return model


def build_model(recipe: Recipe, sampler: RoISampler, rpn_sampler: RoISampler | None = None) -> Detector:
    """Makes the detector with random weights; `initialise` fills it.

    Args:
        recipe: its options.
        sampler: chooses the RoIs that it is trained on.
        rpn_sampler: chooses the anchors that its region proposal network is trained on; None: as torchvision does.
    """
    if recipe.model.detector != "fast_rcnn":
        return build_torchvision(recipe, sampler, rpn_sampler)
    backbone = BACKBONES[recipe.model.backbone]()
    if recipe.model.pooling == "pyramid":
        with_pyramid(backbone)
    backbone.freeze(*FROZEN[recipe.model.frozen])
    for layer in backbone.roi_head.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = recipe.model.dropout
    test = recipe.test
    return FastRCNN(
        backbone,
        len(recipe.data.classes) + 1,
        sampler,
        implementation=recipe.model.implementation,
        regions=build_regions(recipe.model),
        rescore_top=recipe.model.rescore_top,
        shortlist=recipe.model.shortlist,
        post_process=PostProcess(test.score, test.nms_iou, test.max_detections),
        refinement=build_refinement(test),
        merge={"union": union, "nearest": nearest}[test.merge],
    )


def build_regions(config: ModelConfig) -> Regions | None:
    """Makes the regions of a RoI that the recipe names; None if it names none."""
    if not config.regions:
        return None
    names = REGIONS if config.regions == ("mr_cnn",) else config.regions
    return Regions(
        tuple(REGIONS[name] for name in names),
        Region(config.box_region) if config.box_region else None,
        FOREGROUND if config.foreground_features else None,
    )


def build_refinement(config: TestConfig) -> BoxRefinement | None:
    """Makes iterative box regression with voting; None where the recipe has neither."""
    refinement = BoxRefinement(
        iterations=config.iterations,
        rescore_score=config.rescore_score,
        first_nms_iou=config.first_nms_iou,
        first_top=config.first_top,
        voting=config.voting,
        vote_iou=config.vote_iou,
        vote_at_least=config.vote_at_least,
        vote_added=config.vote_added,
        voters=config.voters,
    )
    unlimited = config.first_nms_iou is None and config.first_top is None
    return None if config.iterations == 1 and unlimited and not config.voting else refinement


def initialise(model: Detector, examples: Examples, recipe: Recipe) -> None:
    """Initialises a new run: pre-trained weights, the scale of a new head, the statistics of the box targets."""
    if isinstance(model, TorchvisionDetector):
        load_pretrained(model, recipe)
        return
    assert isinstance(model, FastRCNN)
    if recipe.model.weights != "none" and model.backbone.pretrained.replaced:
        _print_once("the first fully connected layer starts at random: pyramid pooling gives it other inputs")
    if recipe.model.weights == "none" or not load_weights(model.backbone, recipe.model.weights):
        init_head(model.backbone, [examples[i].image for i in range(min(len(examples), 8))])
    model.copy_roi_head()
    if recipe.model.box_normalisation == "empirical":
        mean, std = target_statistics(
            (
                match([e.proposals], [e.target], mean=[0.0] * 4, std=[1.0] * 4)
                for e in map(examples.__getitem__, range(len(examples)))
            ),
            model.num_classes,
        )
        model.box_mean.copy_(mean)
        model.box_std.copy_(std)


def _print_once(text: str) -> None:
    """Prints `text` in the first of the processes."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        print(text, flush=True)


def build_sampler(config: SamplerConfig) -> RoISampler:
    """Returns the sampler that the recipe names; an option that is None has the default of its class."""
    if config.name == "builtin":  # called only where the anchors are mined: it draws RoIs as torchvision does
        size = config.batch_size or 512
        return make_sampler("random", batch_size=size, fg_fraction=config.fg_fraction, bg_lo=0.0)
    return make_sampler(**asdict(config))


def build_rpn_sampler(config: ModelConfig) -> RoISampler | None:
    """Returns the sampler that the recipe names for anchors, with the numbers of torchvision's; None if it has none."""
    if config.rpn_sampler is None:
        return None
    return make_sampler(config.rpn_sampler, batch_size=config.rpn_batch_size or 256, fg_fraction=0.5, nms_iou=1.0)
