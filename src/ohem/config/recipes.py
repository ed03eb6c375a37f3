"""The named recipes: small ones, torchvision's, and those of the paper. Imports nothing slow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ohem.config.methods import B_OVER_N, METHODS, multi_scale, replace_options, voting
from ohem.config.paper import FIGURES
from ohem.config.schema import (
    DataConfig,
    ModelConfig,
    ProposalConfig,
    Recipe,
    RunConfig,
    SamplerConfig,
    SolverConfig,
    TestConfig,
)
from ohem.errors import InputError, suggest


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, the data in its command, and the mAP of the paper if the paper has the recipe."""

    recipe: Recipe
    about: str
    train: str = "FOLDER:trainval"
    test: str = "FOLDER:test"
    """Empty if only the server has the annotations."""
    paper: float | None = None

    def command(self, name: str) -> str:
        """Returns the command that trains it, as the recipe `name`."""
        test = f" --data.test {self.test}" if self.test else ""
        return f"ohem train runs/{name} --recipe {name} --data.train {self.train}{test}"


B128 = SamplerConfig(batch_size=B_OVER_N)
VGG16 = ModelConfig(backbone="vgg16", weights="torchvision:IMAGENET1K_V1")
# torchvision has no VGG_CNN_M_1024: this is Caffe's file, in the working folder unless --model.weights names another.
VGGM = ModelConfig(backbone="vgg_cnn_m_1024", weights="VGG_CNN_M_1024.caffemodel")
NETWORKS = {"vgg16": VGG16, "vggm": VGGM}
SMALL = Recipe(
    model=ModelConfig(backbone="squeezenet1_0", weights="torchvision:IMAGENET1K_V1", dropout=0.0),
    data=DataConfig(short=400, long=667),
    sampler=B128,
    solver=SolverConfig(steps=4800, lr=0.002, decay_every=3600, warmup=100, clip=10.0),
    run=RunConfig(checkpoint_every=200),
)
DEMO = Recipe(
    model=ModelConfig(backbone="tiny", dropout=0.0),
    data=DataConfig(short=240, long=400, flip=False),  # mirrored digits are distractors of the images
    sampler=B128,
    solver=SolverConfig(steps=1800, lr=0.02, decay_every=1350, warmup=50, clip=10.0),
    run=RunConfig(checkpoint_every=450),
)


def _faster_rcnn(backbone: Literal["resnet50", "mobilenet_v3_large"], short: int, long: int) -> Recipe:
    return Recipe(
        model=ModelConfig(detector="faster_rcnn", backbone=backbone, weights="torchvision:IMAGENET1K_V1"),
        data=DataConfig(short=short, long=long),
        solver=SolverConfig(steps=30_000, lr=0.005, decay_every=24_000, warmup=500, images=4, bias_lr=1.0),
        sampler=SamplerConfig(name="builtin", batch_size=512),
        test=TestConfig(score=0.05, nms_iou=0.5, max_detections=100),
        proposals=ProposalConfig(mode=("none",)),
    )


# torchvision's detectors, for data of the size of VOC; change the schedule for other data (docs/results).
TORCHVISION = {
    "fasterrcnn-resnet50-fpn": _faster_rcnn("resnet50", 600, 1000),
    "fasterrcnn-mobilenet-v3-large-320-fpn": _faster_rcnn("mobilenet_v3_large", 320, 640),
    "ssdlite320-mobilenet-v3-large": Recipe(
        model=ModelConfig(detector="ssdlite", backbone="mobilenet_v3_large", weights="torchvision:IMAGENET1K_V1"),
        data=DataConfig(short=320, long=640),
        solver=SolverConfig(
            steps=60_000, lr=0.015, decay_every=45_000, warmup=1000, images=24, bias_lr=1.0, weight_decay=4e-5
        ),
        sampler=SamplerConfig(name="builtin", batch_size=64, nms_iou=1.0),
        test=TestConfig(score=0.001, nms_iou=0.55, max_detections=300),
        proposals=ProposalConfig(mode=("none",)),
    ),
}

SCHEDULES = {
    "voc07": SolverConfig(steps=80_000, lr=0.001, decay_every=30_000),
    "voc0712": SolverConfig(steps=200_000, lr=0.001, decay_every=40_000),
    "coco": SolverConfig(steps=240_000, lr=0.001, decay_every=160_000),
}
COCO_TRAIN = "COCO/annotations/instances_train2014.json:COCO/train2014"
COCO_VAL = "COCO/annotations/instances_val2014.json:COCO/val2014"
COCO_TEST = "COCO/annotations/image_info_test-dev2015.json:COCO/test2015"
# Training data, test data, schedule. The paper's figures of COCO are of test-dev; only the server has its annotations.
DATA = {
    "voc07": ("VOC2007:trainval", "VOC2007:test", "voc07"),
    "voc0712": ("VOC2007:trainval VOC2012:trainval", "VOC2007:test", "voc0712"),
    "voc12": ("VOC2012:trainval", "", "voc07"),
    "voc0712test": ("VOC2007:trainval VOC2007:test VOC2012:trainval", "", "voc0712"),
    "coco": (COCO_TRAIN, COCO_VAL, "coco"),
    "cocotrainval": (f"{COCO_TRAIN} {COCO_VAL}", COCO_TEST, "coco"),
}
M_TRAIN, PAPER_M = (480, 576, 688, 864, 900), (480, 576, 688, 864, 1000)
SMALL_M = (320, 400, 480)


def _paper_recipes() -> Iterator[tuple[str, NamedRecipe]]:
    """Yields the recipes of the paper, DATA-NETWORK-METHOD."""
    for data, networks in FIGURES.items():
        train, test, schedule = DATA[data]
        for network, figures in networks.items():
            base = Recipe(model=NETWORKS[network], sampler=B128, solver=SCHEDULES[schedule])
            for method, figure in figures.items():
                recipe, about = _with_method(base, method, M_TRAIN, PAPER_M)
                if (network, method.removesuffix("-n1")) == ("vggm", "all"):
                    recipe = replace_options(recipe, solver={"lr": 0.004})
                about = f"{base.model.backbone} on {data}, {about}"
                yield f"{data}-{network}-{method}", NamedRecipe(recipe, about, train, test, figure)


def _own_recipes(prefix: str, base: Recipe, methods: Iterable[str], about: str) -> Iterator[tuple[str, NamedRecipe]]:
    for method in methods:
        recipe, how = _with_method(base, method, SMALL_M, SMALL_M)
        yield f"{prefix}-{method}", NamedRecipe(recipe, f"{about}, {how}")


def _torchvision_recipes() -> Iterator[tuple[str, NamedRecipe]]:
    for name, recipe in TORCHVISION.items():
        size = min(128, recipe.sampler.batch_size or 128)
        yield name, NamedRecipe(recipe, "torchvision's detector without mining")
        mined = replace_options(recipe, sampler={"name": "ohem", "batch_size": size})
        yield f"{name}-ohem", NamedRecipe(mined, "torchvision's detector with OHEM")


def _with_method(base: Recipe, name: str, train: tuple[int, ...], test: tuple[int, ...]) -> tuple[Recipe, str]:
    """Returns the recipe of a method and its description; the suffixes -m and -mb of `name` add M, or M and B."""
    plain = name.removesuffix("-mb").removesuffix("-m")
    recipe, about = METHODS[plain].change(base), METHODS[plain].about
    if plain != name:
        recipe, about = multi_scale(recipe, train, test), f"{about}, M"
    return (voting(recipe), f"{about} and B") if name.endswith("-mb") else (recipe, about)


SMALL_METHODS = (
    *(name for name in METHODS if name not in ("builtin", "ohem-rpn")),
    "frcn-mb",
    "mr-cnn-mb",
    "ohem-m",
    "ohem-mb",
)
RECIPES: dict[str, NamedRecipe] = {
    **dict(_own_recipes("small", SMALL, SMALL_METHODS, "SqueezeNet at 400 pixels for one CPU")),
    **dict(_torchvision_recipes()),
    **dict(_own_recipes("demo", DEMO, ("frcn", "ohem"), "small network trained from scratch by `ohem demo`")),
    **dict(_paper_recipes()),
}


def named_recipe(name: str) -> Recipe:
    """Returns the recipe `name`; raises `InputError` if there is none."""
    if name not in RECIPES:
        raise InputError(f"--recipe {name} is unknown: {suggest(name, RECIPES)}")
    return RECIPES[name].recipe


def list_recipes() -> Iterator[str]:
    """Yields two lines for each recipe: its description with the mAP of the paper, if any, and its command."""
    for name, entry in RECIPES.items():
        figure = f", mAP {entry.paper} in the paper" if entry.paper else ""
        yield f"{name}, {entry.about}{figure}"
        yield f"    {entry.command(name)}"
