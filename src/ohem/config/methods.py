"""The methods that can be compared. A method changes a recipe, but not its schedule."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ohem.config.schema import Recipe, SamplerName

B_OVER_N = 64  # RoIs of an image in the paper: B = 128, N = 2
Change = Callable[[Recipe], Recipe]


@dataclass(frozen=True)
class Method:
    """A way to choose the RoIs that a detector is trained on.

    Args:
        about: description in one line.
        change: function that makes the recipe of the method from another recipe.
    """

    about: str
    change: Change


def replace_options(recipe: Recipe, **groups: dict[str, Any]) -> Recipe:
    """Returns `recipe` with some options of some groups replaced: `replace_options(r, sampler={"name": "ohem"})`."""
    changed = {group: replace(getattr(recipe, group), **options) for group, options in groups.items()}
    return replace(recipe, **changed)


def _sampler(name: SamplerName, **options: Any) -> Change:
    return lambda recipe: replace_options(recipe, sampler={"name": name, **options})


def _one_image(change: Change) -> Change:
    """Returns a change to N = 1, with as many RoIs in a step as the N images of the recipe have."""

    def changed(recipe: Recipe) -> Recipe:
        recipe = change(recipe)
        size = recipe.solver.images * (recipe.sampler.batch_size or B_OVER_N)
        return replace_options(recipe, solver={"images": 1}, sampler={"batch_size": size})

    return changed


def _all_rois(recipe: Recipe) -> Recipe:
    """Changes to B = 2048 RoIs in a step at 3 times the learning rate (paper, section 5.3; 4 for VGG_CNN_M_1024)."""
    sampler = {"name": "random", "bg_lo": 0.0, "batch_size": 1024}
    return replace_options(recipe, sampler=sampler, solver={"lr": 3 * recipe.solver.lr})


def _mine_anchors(recipe: Recipe) -> Recipe:
    return replace_options(recipe, sampler={"name": "ohem"}, model={"rpn_sampler": "ohem"})


def _noise_aware(recipe: Recipe) -> Recipe:
    """Changes to mining that sets RoIs aside in the second half of the schedule."""
    warmup = recipe.solver.steps // 2
    return replace_options(recipe, sampler={"name": "noise_aware", "warmup": warmup})


def _mr_cnn(name: SamplerName) -> Change:
    model = {"regions": ("mr_cnn",), "foreground_features": True}
    return lambda recipe: replace_options(recipe, sampler={"name": name}, model=model)


def _sppnet(name: SamplerName) -> Change:
    model = {"pooling": "pyramid", "frozen": "convolutional"}
    return lambda recipe: replace_options(recipe, sampler={"name": name}, model=model)


CLASS_DEFAULTS = dict.fromkeys(("nms_iou", "cls_weight", "box_weight"))  # not the values that the recipe has for OHEM
METHODS: dict[str, Method] = {
    "frcn": Method("heuristic sampling of Fast R-CNN", _sampler("random")),
    "frcn-bg0": Method("heuristic sampling, bg_lo 0", _sampler("random", bg_lo=0.0)),
    "frcn-n1": Method("heuristic sampling, N = 1", _one_image(_sampler("random"))),
    "frcn-n1-bg0": Method("heuristic sampling, N = 1, bg_lo 0", _one_image(_sampler("random", bg_lo=0.0))),
    "all": Method("all RoIs, B = 2048, a higher learning rate", _all_rois),
    "all-n1": Method("all RoIs, B = 2048, a higher learning rate, N = 1", _one_image(_all_rois)),
    "ohem": Method("online hard example mining", _sampler("ohem")),
    "ohem-n1": Method("OHEM, N = 1", _one_image(_sampler("ohem"))),
    "ohem-no-nms": Method("OHEM without NMS", _sampler("ohem", nms_iou=1.0)),
    "ohem-release": Method("OHEM as the authors released it", _sampler("release", suppress=None)),
    "separate": Method(
        "foreground and background mined separately, 25 % foreground, no NMS", _sampler("separate", nms_iou=1.0)
    ),
    "rank": Method("sampled by the rank of the loss (Loshchilov and Hutter)", _sampler("rank")),
    "mmdetection": Method(
        "mmdetection's rule: class loss alone, foreground and background separate",
        _sampler("mmdetection", **CLASS_DEFAULTS),
    ),
    "iou-balanced": Method("background of every range of IoU (Libra R-CNN)", _sampler("iou_balanced")),
    "hierarchical": Method("ranked by neighbourhood (PISA)", _sampler("hierarchical", **CLASS_DEFAULTS)),
    "proportional": Method("sampled in proportion to the loss", _sampler("proportional")),
    "builtin": Method("what torchvision's detector does without mining", _sampler("builtin")),
    "ohem-rpn": Method("OHEM, also among the anchors of the region proposal network", _mine_anchors),
    "noise-aware": Method("OHEM without background that resembles an object without a box", _noise_aware),
    "mr-cnn": Method("heuristic sampling, the regions and foreground features of MR-CNN", _mr_cnn("random")),
    "mr-cnn-ohem": Method("OHEM, the regions and foreground features of MR-CNN", _mr_cnn("ohem")),
    "sppnet": Method("heuristic sampling, the pyramid pooling and fixed convolutions of SPPnet", _sppnet("random")),
    "sppnet-ohem": Method("OHEM, the pyramid pooling and fixed convolutions of SPPnet", _sppnet("ohem")),
    "ratio": Method("the hardest background at a ratio to the foreground (SSD)", _sampler("ratio", nms_iou=None)),
}


def multi_scale(recipe: Recipe, train: tuple[int, ...], test: tuple[int, ...]) -> Recipe:
    """Returns `recipe` with the paper's M: several scales in training and in testing."""
    return replace_options(recipe, data={"scales": train}, test={"scales": test})


def voting(recipe: Recipe) -> Recipe:
    """Returns `recipe` with the paper's B: boxes are regressed twice, with voting."""
    return replace_options(recipe, test={"iterations": 2, "voting": True})
