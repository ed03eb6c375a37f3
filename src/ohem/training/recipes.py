"""The named recipes: those of the paper, and small ones. Imports nothing heavy: `ohem --help` must answer at once."""

from dataclasses import dataclass
from typing import Literal

from ohem.training.config import (
    DataConfig,
    ModelConfig,
    ProposalConfig,
    Recipe,
    RunConfig,
    SamplerConfig,
    SolverConfig,
    TestConfig,
)
from ohem.training.variants import VARIANTS, multi_scale, vary, voting


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe with its figures: the paper's mAP, and ours where it has been measured."""

    recipe: Recipe
    about: str
    train: str = "FOLDER:trainval"
    test: str = "FOLDER:test"
    """Empty where the annotations are the server's."""
    paper: float | None = None
    ours: str | None = None

    def command(self, name: str) -> str:
        """The line that trains it, as the recipe `name`."""
        test = f" --data.test {self.test}" if self.test else ""
        return f"ohem train runs/{name} --recipe {name} --data.train {self.train}{test}"


VGG16 = ModelConfig(backbone="vgg16", weights="torchvision:IMAGENET1K_V1")
# torchvision has no VGG_CNN_M_1024: this is Caffe's file, in the working folder if --model.weights names no other.
VGGM = ModelConfig(backbone="vgg_cnn_m_1024", weights="VGG_CNN_M_1024.caffemodel")
SMALL = Recipe(
    model=ModelConfig(backbone="squeezenet1_0", weights="torchvision:IMAGENET1K_V1", dropout=0.0),
    data=DataConfig(short=400, long=667),
    solver=SolverConfig(steps=4800, lr=0.002, decay_every=3600, warmup=100, clip=10.0),
    run=RunConfig(checkpoint_every=200),
)
DEMO = Recipe(
    model=ModelConfig(backbone="tiny", dropout=0.0),
    data=DataConfig(short=240, long=400, flip=False),  # a mirrored digit is a distractor of the scenes
    solver=SolverConfig(steps=1800, lr=0.02, decay_every=1350, warmup=50, clip=10.0),
    run=RunConfig(checkpoint_every=450),
)


def _faster_rcnn(backbone: Literal["resnet50", "mobilenet_v3_large"], short: int, long: int) -> Recipe:
    return Recipe(
        model=ModelConfig(detector="faster_rcnn", backbone=backbone, weights="torchvision:IMAGENET1K_V1"),
        data=DataConfig(short=short, long=long),
        solver=SolverConfig(steps=30_000, lr=0.005, decay_every=24_000, warmup=500, images=4, bias_lr=1.0),
        sampler=SamplerConfig(name="own", batch_size=512),
        test=TestConfig(score=0.05, nms_iou=0.5, max_detections=100),
        proposals=ProposalConfig(mode="none"),
    )


# torchvision's detectors, on data of the size of VOC; for other data change the schedule, as `docs/results` does.
TORCHVISION = {
    "fasterrcnn-resnet50-fpn": _faster_rcnn("resnet50", 600, 1000),
    "fasterrcnn-mobilenet-v3-large-320-fpn": _faster_rcnn("mobilenet_v3_large", 320, 640),
    "ssdlite320-mobilenet-v3-large": Recipe(
        model=ModelConfig(detector="ssdlite", backbone="mobilenet_v3_large", weights="torchvision:IMAGENET1K_V1"),
        data=DataConfig(short=320, long=640),
        solver=SolverConfig(
            steps=60_000, lr=0.015, decay_every=45_000, warmup=1000, images=24, bias_lr=1.0, weight_decay=4e-5
        ),
        sampler=SamplerConfig(name="own", nms_iou=1.0),
        test=TestConfig(score=0.001, nms_iou=0.55, max_detections=300),
        proposals=ProposalConfig(mode="none"),
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
# Training data, test data, schedule. The paper's figures of COCO are of test-dev, whose annotations are the server's.
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

# Data, network, variant (of VARIANTS, with -m and -mb for the paper's M and M + B), the paper's figure.
PAPER: tuple[tuple[str, str, str, float], ...] = (
    ("voc07", "vgg16", "frcn", 67.2),
    ("voc07", "vgg16", "frcn-bg0", 67.5),
    ("voc07", "vgg16", "frcn-n1", 66.3),
    ("voc07", "vgg16", "frcn-n1-bg0", 66.3),
    ("voc07", "vgg16", "all-n1", 67.5),
    ("voc07", "vgg16", "all", 68.7),
    ("voc07", "vgg16", "ohem-n1", 69.7),
    ("voc07", "vgg16", "ohem", 69.9),
    ("voc07", "vgg16", "frcn-mb", 72.4),
    ("voc07", "vgg16", "ohem-mb", 75.1),
    ("voc07", "vggm", "frcn", 59.6),
    ("voc07", "vggm", "frcn-bg0", 57.2),
    ("voc07", "vggm", "all-n1", 57.7),
    ("voc07", "vggm", "all", 60.4),
    ("voc07", "vggm", "ohem", 62.0),
    ("voc0712", "vgg16", "frcn", 70.0),
    ("voc0712", "vgg16", "ohem", 74.6),
    ("voc0712", "vgg16", "ohem-mb", 78.9),
    ("voc12", "vgg16", "frcn", 65.7),
    ("voc12", "vgg16", "ohem", 69.8),
    ("voc12", "vgg16", "ohem-mb", 72.9),
    ("voc0712test", "vgg16", "frcn", 68.4),
    ("voc0712test", "vgg16", "ohem", 71.9),
    ("voc0712test", "vgg16", "ohem-mb", 76.3),
    ("coco", "vgg16", "frcn", 19.7),
    ("coco", "vgg16", "ohem", 22.6),
    ("coco", "vgg16", "ohem-m", 24.4),
    ("cocotrainval", "vgg16", "ohem-m", 25.5),
)
OURS = {
    "small-frcn": "93.5 on cards",
    "small-frcn-bg0": "96.3 on cards",
    "small-ohem": "96.7 on cards",
    "small-frcn-n1": "94.1 on cards",
    "small-frcn-n1-bg0": "95.7 on cards",
    "small-all-n1": "94.2 on cards",
    "small-all": "96.6 on cards",
    "small-ohem-n1": "94.2 on cards",
    "small-frcn-mb": "96.4 on cards",
    "small-ohem-mb": "98.7 on cards",
    "demo-frcn": "66.3",
    "demo-ohem": "70.7",
}


def _paper(data: str, network: str, variant: str, figure: float) -> NamedRecipe:
    train, test, schedule = DATA[data]
    model = {"vgg16": VGG16, "vggm": VGGM}[network]
    recipe, about = _varied(Recipe(model=model, solver=SCHEDULES[schedule]), variant, M_TRAIN, PAPER_M)
    if (network, variant.removesuffix("-n1")) == ("vggm", "all"):
        recipe = vary(recipe, solver={"lr": 0.004})
    title = f"{model.backbone} on {data}, {about}"
    return NamedRecipe(recipe, title, train, test, figure)


def _small(prefix: str, base: Recipe, variant: str, about: str) -> dict[str, NamedRecipe]:
    recipe, how = _varied(base, variant, SMALL_M, SMALL_M)
    name = f"{prefix}-{variant}"
    return {name: NamedRecipe(recipe, f"{about}, {how}", ours=OURS.get(name))}


def _varied(base: Recipe, variant: str, train: tuple[int, ...], test: tuple[int, ...]) -> tuple[Recipe, str]:
    plain = variant.removesuffix("-mb").removesuffix("-m")
    about, change = VARIANTS[plain]
    recipe = change(base)
    if plain != variant:
        recipe, about = multi_scale(recipe, train, test), f"{about}, M"
    return (voting(recipe), f"{about} and B") if variant.endswith("-mb") else (recipe, about)


RECIPES: dict[str, NamedRecipe] = {"-".join(row[:3]): _paper(*row) for row in PAPER}
for _variant in (*(name for name in VARIANTS if name != "own"), "frcn-mb", "ohem-m", "ohem-mb"):
    RECIPES |= _small("small", SMALL, _variant, "SqueezeNet at 400 pixels for one CPU")
for _name, _recipe in TORCHVISION.items():
    _mined = vary(_recipe, sampler={"name": "ohem", "batch_size": min(128, _recipe.sampler.batch_size)})
    RECIPES[_name] = NamedRecipe(_recipe, "torchvision's detector as it is")
    RECIPES[f"{_name}-ohem"] = NamedRecipe(_mined, "torchvision's detector, OHEM")
for _variant in ("frcn", "ohem"):
    RECIPES |= _small("demo", DEMO, _variant, "small network from scratch (`ohem demo`)")
