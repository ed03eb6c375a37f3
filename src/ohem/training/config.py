"""What a training run needs, whole, as frozen nested dataclasses.

The field names are the options of the command line (`--solver.lr 0.002`) and the keys of `RUN/recipe.yaml`.
This module imports nothing heavy: `ohem --help` must answer at once.
"""

from dataclasses import dataclass, field
from typing import Literal

Metric = Literal["voc07", "voc10", "coco"]
"""11-point AP of VOC2007, area under the curve of VOC2010, COCO's AP."""
Backbone = Literal["vgg16", "vgg_cnn_m_1024", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_large", "resnet50", "tiny"]


@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    detector: Literal["fast_rcnn", "faster_rcnn", "ssdlite"] = "fast_rcnn"
    """The paper's; or torchvision's Faster R-CNN with a feature pyramid, or SSDlite, which need no proposals."""
    backbone: Backbone = "vgg16"
    """Conv network and RoI network; torchvision's detectors have those that torchvision builds them with."""
    weights: str = "none"
    """Initial weights: a .safetensors, .pth or .caffemodel file, torchvision:NAME, or none for random ones."""
    dropout: float = 0.5
    """Of the RoI network, where it has dropout."""
    implementation: Literal["read_only", "loss_layer"] = "read_only"
    """How OHEM is done: a read-only pass over all RoIs, or one pass in which the losses of the others are zeroed."""
    rescored: int = 0
    """read_only: 0 ranks all RoIs in full; else all are ranked coarsely, in int8 (on a GPU float8 or bfloat16), faster,
    and so many of each image, the hardest by that, again in full."""
    box_normalisation: Literal["fixed", "empirical"] = "fixed"
    """Mean and std of the regression targets: (0, 0, 0, 0) and (0.1, 0.1, 0.2, 0.2), or the authors' per-class ones."""


@dataclass(frozen=True)
class DataConfig:
    """Images and how they are shown to the network."""

    train: tuple[str, ...] = ()
    """Data sets to train on, FOLDER:SPLIT (VOC layout) or ANNOTATIONS.json:IMAGES (COCO); several are concatenated."""
    test: tuple[str, ...] = ()
    """Data sets to evaluate on."""
    classes: tuple[str, ...] = ()
    """Names of the foreground classes, in order; those of the training annotations if not given."""
    skip_others: bool = False
    """Skip the objects of other classes, with a warning, in place of an error; so wherever `classes` are given."""
    short: int = 600
    """Short side of the resized image, in pixels."""
    long: int = 1000
    """Highest long side of the resized image, in pixels."""
    scales: tuple[int, ...] = ()
    """Short sides, one of which is drawn each time an image is trained on (M); `short` alone if not given."""
    flip: bool = True
    """Show half of the images mirrored, at random."""
    workers: int = 0
    """Processes that read images ahead of the training step."""


@dataclass(frozen=True)
class ProposalConfig:
    """Where the proposals come from."""

    mode: Literal["fast", "quality", "none"] = "fast"
    """Selective search mode; none, for a detector that makes its own proposals."""
    seed: int = 0
    """Of selective search."""
    top: int = 2000
    """Most proposals used of an image, first ones first."""
    files: tuple[str, ...] = ()
    """.mat files of the original release, used in place of selective search."""
    folder: str | None = None
    """Folder of the caches; None keeps them beside the data."""
    jobs: int = -1
    """Processes of selective search; -1 uses every core."""


@dataclass(frozen=True)
class SamplerConfig:
    """Which RoIs are trained on."""

    name: Literal[
        "random", "ohem", "all", "separate", "rank", "proportional", "iou_balanced", "hierarchical", "ratio", "own"
    ] = "ohem"
    """The heuristic of Fast R-CNN; online hard example mining; every RoI; or what the paper argues against or beside:
    foreground and background mined apart, a chance that decays with the rank of the loss, or is proportional to it; or
    later ones, background of every range of IoU (Libra R-CNN), ranking by neighbourhood (PISA), the hardest background
    at a ratio to the foreground (SSD). own: what torchvision's detector does by itself, unchanged."""
    batch_size: int = 64
    """RoIs of an image (B / N)."""
    fg_fraction: float = 0.25
    """random, separate, iou_balanced: highest share of foreground."""
    bg_lo: float = 0.1
    """random: background has at least this IoU with an object."""
    nms_iou: float = 0.7
    """ohem, separate, ratio: RoIs above this IoU with a harder one are left out; 1 switches it off. hierarchical: they
    are of its neighbourhood."""
    per_image: bool = True
    """ohem, separate: the hardest of each image, or of the mini-batch."""
    suppress: Literal["image", "label"] = "image"
    """ohem, separate: NMS within an image, or within an image and label."""
    inclusive: bool = False
    """ohem, separate: NMS counts the last pixel of a box in."""
    classifier: float = 1.0
    """ohem, separate, hierarchical: weight of the classification loss in the ranking."""
    box_reg: float = 1.0
    """The same, of the box-regression loss; 0 ranks by the class alone."""
    pressure: float = 100.0
    """rank: chance of the hardest RoI over that of the easiest."""
    negatives_per_positive: float = 3.0
    """ratio: RoIs of background for each of the foreground."""


@dataclass(frozen=True)
class SolverConfig:
    """SGD (paper, section 5.1)."""

    steps: int = 80_000
    """Mini-batches."""
    lr: float = 0.001
    """Learning rate of weights."""
    decay_every: int = 30_000
    """Steps after which the learning rate is multiplied by `gamma`, again and again."""
    gamma: float = 0.1
    """Factor of the step decay."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0005
    """Of weights; biases have none."""
    bias_lr: float = 2.0
    """Learning rate of biases, in units of `lr`."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly to `lr`."""
    clip: float = 0.0
    """Highest norm of the gradient; 0 does not clip."""
    images: int = 2
    """Images of a mini-batch (N), over all processes."""
    accumulate: bool = False
    """Add up the gradients of N single-image passes, which needs less memory, in place of one pass of N images."""
    seed: int = 0
    """Of the initial weights, the order of the images, flips, sampling and dropout."""


@dataclass(frozen=True)
class TestConfig:
    """How a trained detector looks at an image: may differ when a run is resumed, and at each evaluation."""

    scales: tuple[int, ...] = ()
    """Short sides in pixels, at all of which an image is looked at (M); data.short alone if not given."""
    long: int | None = None
    """Highest long side in pixels; data.long if not given."""
    merge: Literal["union", "nearest"] = "union"
    """Several scales: the boxes of all of them, or each box at the scale that brings its area nearest to 224 x 224."""
    iterations: int = 1
    """Times that boxes are scored and relocated; 2 with `voting` is the paper's B."""
    rescore_score: float = 0.05
    """Boxes below this score are not scored and relocated again."""
    first_nms_iou: float | None = None
    """IoU of an NMS of the proposals of a class before the first relocation; MR-CNN has 0.95."""
    first_top: int | None = None
    """Most proposals of a class that are relocated; MR-CNN has 200."""
    voting: bool = False
    """Each detection becomes the mean, weighted by score, of the boxes of its class around it."""
    vote_iou: float = 0.5
    """Boxes above this IoU with a detection vote."""
    vote_at_least: bool = False
    """Boxes of exactly that IoU vote too, as in MR-CNN."""
    vote_added: float = 0.0
    """Added to the scores that votes are weighted by; MR-CNN has 1.5 for those of SVMs."""
    voters: Literal["all", "scored"] = "all"
    """Who votes: every box of every iteration, or those of at least `score`."""
    score: float = 0.001
    """Detections below it are dropped."""
    nms_iou: float = 0.3
    """IoU of the per-class NMS."""
    max_detections: int = 300
    """Highest number an image."""


@dataclass(frozen=True)
class RunConfig:
    """The machine, logs and checkpoints: may differ when a run is resumed."""

    accelerator: str = "auto"
    """auto, cpu, cuda, mps, ..."""
    devices: str = "1"
    """Processes, one to a GPU: a number, or auto for every GPU; under torchrun, what that started."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Of the arithmetic; losses are ranked in float32 whatever it is."""
    log_every: int = 10
    """Steps to a row of metrics.csv."""
    checkpoint_every: int = 1000
    """Steps to a checkpoint."""
    snapshot_every: int = 0
    """Steps to a snapshot, weights that are kept in RUN/snapshots to look back at; 0 keeps none."""
    loss_every: int = 0
    """Steps to a row of RUN/loss_all.csv, the mean loss over all RoIs of the training images; 0 never measures it."""


@dataclass(frozen=True)
class Recipe:
    """A training run, whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    test: TestConfig = field(default_factory=TestConfig)
    run: RunConfig = field(default_factory=RunConfig)
