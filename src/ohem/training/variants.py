"""Ways of training that are compared: each makes one recipe of another, the schedule left as it is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ohem.training.config import Recipe

Variant = Callable[[Recipe], Recipe]


def vary(recipe: Recipe, **groups: dict[str, Any]) -> Recipe:
    """`recipe` with some fields of some groups replaced: `vary(r, sampler={"name": "ohem"})`."""
    changed = {group: replace(getattr(recipe, group), **fields) for group, fields in groups.items()}
    return replace(recipe, **changed)


def _sampler(**fields: Any) -> Variant:
    return lambda recipe: vary(recipe, sampler=fields)


def _one_image(variant: Variant) -> Variant:
    """N = 1, and as many RoIs a step as the images of the recipe have."""

    def made(recipe: Recipe) -> Recipe:
        recipe = variant(recipe)
        size = recipe.solver.images * recipe.sampler.batch_size
        return vary(recipe, solver={"images": 1}, sampler={"batch_size": size})

    return made


def _all_rois(recipe: Recipe) -> Recipe:
    """B = 2048 RoIs a step, at three times the learning rate (paper, section 5.3; it took 4 for VGG_CNN_M_1024)."""
    sampler = {"name": "random", "bg_lo": 0.0, "batch_size": 1024}
    return vary(recipe, sampler=sampler, solver={"lr": 3 * recipe.solver.lr})


VARIANTS: dict[str, tuple[str, Variant]] = {
    "frcn": ("heuristic sampling", _sampler(name="random")),
    "frcn-bg0": ("heuristic sampling, bg_lo 0", _sampler(name="random", bg_lo=0.0)),
    "frcn-n1": ("heuristic sampling, N = 1", _one_image(_sampler(name="random"))),
    "frcn-n1-bg0": ("heuristic sampling, N = 1, bg_lo 0", _one_image(_sampler(name="random", bg_lo=0.0))),
    "all": ("all RoIs, B = 2048, a higher learning rate", _all_rois),
    "all-n1": ("all RoIs, B = 2048, a higher learning rate, N = 1", _one_image(_all_rois)),
    "ohem": ("OHEM", _sampler(name="ohem")),
    "ohem-n1": ("OHEM, N = 1", _one_image(_sampler(name="ohem"))),
    "ohem-no-nms": ("OHEM without NMS", _sampler(name="ohem", nms_iou=1.0)),
    "ohem-release": (
        "OHEM as the authors released it",
        _sampler(name="ohem", per_image=False, suppress="label", inclusive=True),
    ),
    "separate": ("foreground and background mined apart, 25 % foreground", _sampler(name="separate", nms_iou=1.0)),
    "rank": ("drawn by rank of loss (Loshchilov and Hutter)", _sampler(name="rank")),
    "mmdetection": (
        "mmdetection's rule: class loss alone, foreground and background apart",
        _sampler(name="separate", nms_iou=1.0, box_reg=0.0),
    ),
    "iou-balanced": ("background of every range of IoU (Libra R-CNN)", _sampler(name="iou_balanced")),
    "hierarchical": ("ranked by neighbourhood (PISA)", _sampler(name="hierarchical", nms_iou=0.5, box_reg=0.0)),
    "proportional": ("drawn in proportion to the loss", _sampler(name="proportional")),
    "own": ("what torchvision's detector does by itself", _sampler(name="own")),
    "ratio": ("the hardest background at a ratio to the foreground (SSD)", _sampler(name="ratio", nms_iou=1.0)),
}


def multi_scale(recipe: Recipe, train: tuple[int, ...], test: tuple[int, ...]) -> Recipe:
    """The paper's M, in training and in testing."""
    return vary(recipe, data={"scales": train}, test={"scales": test})


def voting(recipe: Recipe) -> Recipe:
    """The paper's B: boxes relocated twice, with voting."""
    return vary(recipe, test={"iterations": 2, "voting": True})
