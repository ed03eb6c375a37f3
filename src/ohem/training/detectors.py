"""From a recipe to its detector: the paper's, or torchvision's."""

from torch import nn

from ohem.data.loader import Examples
from ohem.detection.backbones import BACKBONES, init_head
from ohem.detection.detector import Detector
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.inference import PostProcess
from ohem.detection.multiscale import nearest, union
from ohem.detection.refinement import BoxRefinement
from ohem.detection.weights import load_weights
from ohem.errors import InputError
from ohem.rois import match, target_statistics
from ohem.samplers import RoISampler
from ohem.training.adapted import TorchvisionDetector
from ohem.training.config import Recipe, TestConfig
from ohem.training.torchvision_models import STAGES, build_torchvision, load_pretrained

KNOWN = {"fast_rcnn": tuple(BACKBONES), "faster_rcnn": tuple(STAGES), "ssdlite": ("mobilenet_v3_large",)}
"""Backbones of each detector."""


def check_detector(recipe: Recipe) -> None:
    """Raises InputError where options do not go with the detector."""
    model, name = recipe.model, f"--model.detector {recipe.model.detector}"
    if model.backbone not in KNOWN[model.detector]:
        known = " or ".join(KNOWN[model.detector])
        raise InputError(f"--model.backbone {model.backbone} is none of {name}: give {known}")
    if model.detector == "fast_rcnn":
        if recipe.sampler.name == "own":
            raise InputError(f"--sampler.name own is what torchvision's detectors do, not {name}: give another")
        if recipe.proposals.mode == "none":
            raise InputError(f"--proposals.mode none leaves {name} without RoIs: give fast or quality")
        return
    for option, given in _of_fast_rcnn(recipe).items():
        if given:
            raise InputError(f"--{option} is not for {name}, of torchvision: leave it out, or give another detector")
    if recipe.proposals.mode != "none":
        raise InputError(f"{name} makes its own proposals: add --proposals.mode none")
    if model.detector == "ssdlite" and (recipe.solver.images < 2 or recipe.solver.accumulate):
        raise InputError(f"the batch norm of {name} needs several images: give --solver.images 2 or more at once")


def _of_fast_rcnn(recipe: Recipe) -> dict[str, bool]:
    """Options that only our own detector has, and whether they are set."""
    return {
        "model.implementation": recipe.model.implementation != "read_only",
        "model.rescored": recipe.model.rescored != 0,
        "model.box-normalisation": recipe.model.box_normalisation != "fixed",
        "proposals.files": bool(recipe.proposals.files),
        "data.scales": bool(recipe.data.scales),
        "test.scales": bool(recipe.test.scales),
        "test.iterations": recipe.test.iterations > 1,
        "test.voting": recipe.test.voting,
        "run.loss-every": recipe.run.loss_every > 0,
    }


def as_fast_rcnn(model: Detector, what: str) -> FastRCNN:
    """`model`, if it is one; else InputError, since `what` needs its fixed RoIs."""
    if not isinstance(model, FastRCNN):
        raise InputError(
            f"{what} needs proposals that are the same at every step: it is for --model.detector fast_rcnn"
        )
    return model


def build_model(recipe: Recipe, sampler: RoISampler) -> Detector:
    """The detector as constructed, with random weights; `initialise` fills it."""
    if recipe.model.detector != "fast_rcnn":
        return build_torchvision(recipe, sampler)
    backbone = BACKBONES[recipe.model.backbone]()
    for layer in backbone.roi_head.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = recipe.model.dropout
    test = recipe.test
    return FastRCNN(
        backbone,
        len(recipe.data.classes) + 1,
        sampler,
        implementation=recipe.model.implementation,
        rescored=recipe.model.rescored,
        post_process=PostProcess(test.score, test.nms_iou, test.max_detections),
        refinement=build_refinement(test),
        merge={"union": union, "nearest": nearest}[test.merge],
    )


def build_refinement(config: TestConfig) -> BoxRefinement | None:
    """Iterative box regression with voting as the recipe has it; None where it asks for nothing of the kind."""
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
    """What a new run starts from: pre-trained weights, the scale of a new head, the statistics of the box targets."""
    if isinstance(model, TorchvisionDetector):
        load_pretrained(model, recipe)
        return
    assert isinstance(model, FastRCNN)
    if recipe.model.weights == "none" or not load_weights(model.backbone, recipe.model.weights):
        init_head(model.backbone, [examples[i].image for i in range(min(len(examples), 8))])
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
