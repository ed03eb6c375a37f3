"""The options of a training, as frozen nested dataclasses.

The names of the fields are the options of the command line (`--solver.lr 0.002`) and the keys of `RUN/recipe.yaml`.
This module imports nothing slow, so that `ohem --help` answers at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cyclopts import Group, Parameter

MetricName = Literal["voc07", "voc10", "coco"]
"""voc07: 11-point AP of VOC2007; voc10: area under the curve, as VOC2010; coco: AP of COCO."""
BackboneName = Literal[
    "vgg16", "vgg_cnn_m_1024", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_large", "resnet50", "tiny"
]
RegionName = Literal[
    "mr_cnn",
    "original",
    "left",
    "right",
    "upper",
    "lower",
    "center",
    "center_ring",
    "border",
    "wide_border",
    "context",
]
"""mr_cnn: all the others."""
SamplerName = Literal[
    "ohem",
    "random",
    "all",
    "builtin",
    "release",
    "mmdetection",
    "separate",
    "rank",
    "proportional",
    "iou_balanced",
    "hierarchical",
    "noise_aware",
    "ratio",
]
RPNSamplerName = Literal["ohem", "separate", "rank", "proportional", "ratio", "all"]
DetectorName = Literal["fast_rcnn", "faster_rcnn", "ssdlite"]
ProposalMode = Literal["fast", "quality", "edge-boxes", "sliding", "none"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "64-true"]
LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]
BACKBONES_OF: Mapping[DetectorName, tuple[BackboneName, ...]] = {
    "fast_rcnn": ("vgg16", "vgg_cnn_m_1024", "squeezenet1_0", "mobilenet_v2", "resnet50", "tiny"),
    "faster_rcnn": ("resnet50", "mobilenet_v2", "mobilenet_v3_large"),
    "ssdlite": ("mobilenet_v3_large",),
}


def _heading(title: str) -> Parameter:
    """Returns a decorator that puts the options of a class under a heading of their own in `--help`."""
    return Parameter(group=Group.create_ordered(title))


@_heading("Model")
@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    detector: DetectorName = "fast_rcnn"
    """fast_rcnn: the detector of the paper; faster_rcnn, ssdlite: torchvision's Faster R-CNN with a feature pyramid and
    SSDlite, which need no proposals."""
    backbone: BackboneName = "vgg16"
    """Network of the detector, its convolutional layers and its RoI head. torchvision's detectors use those of
    torchvision."""
    weights: str = "none"
    """Initial weights: a .safetensors, .pth or .caffemodel file, torchvision:NAME, or none for random weights."""
    dropout: float = 0.5
    """Dropout probability of the RoI head, if it has dropout layers."""
    frozen: Literal["first", "convolutional", "all"] = "first"
    """fast_rcnn: layers that are not trained. first: the first ones, for VGG16 conv1 and conv2; convolutional: the
    whole convolutional network, as in SPPnet; all: the RoI head too, so that only the two output layers are trained."""
    pooling: Literal["roi", "pyramid"] = "roi"
    """fast_rcnn: pooling of a RoI. roi: one grid of cells, 7 x 7 for VGG16; pyramid: grids of 6 x 6, 3 x 3, 2 x 2 and 1
    x 1 cells, as in SPPnet, for a RoI head whose first layer is new."""
    implementation: Literal["read_only", "loss_layer"] = "read_only"
    """Implementation of OHEM. read_only: a read-only pass over all RoIs, then a pass over the chosen ones; loss_layer:
    one pass over all RoIs, in which the losses of the RoIs that are not chosen are set to 0."""
    regions: tuple[RegionName, ...] = ()
    """fast_rcnn: regions of a RoI that are pooled, each for a copy of the RoI head. mr_cnn: the ten of MR-CNN. Default:
    the RoI alone."""
    box_region: float = 1.3
    """With --model.regions: factor of the sides of the RoI that gives the region from which boxes are regressed, with a
    RoI head of its own; 0: they are regressed from the regions that are classified."""
    foreground_features: bool = False
    """With --model.regions: also pool the features of a small network that learns from the boxes which cells of the
    feature map are foreground (MR-CNN, section 4)."""
    rescore_top: int = 0
    """With read_only: number of RoIs of each image that are ranked again in full precision, after all RoIs were ranked
    in low precision, the fastest of this processor, such as int8. 0 ranks all RoIs in full precision."""
    shortlist: int = 0
    """With read_only: from the second visit of an image on, number of its RoIs that are ranked, the hardest of its last
    visit; besides, an eighth of the others, in turns. 0 ranks all RoIs at each visit."""
    box_normalisation: Literal["fixed", "empirical"] = "fixed"
    """Mean and standard deviation of the regression targets. fixed: (0, 0, 0, 0) and (0.1, 0.1, 0.2, 0.2); empirical:
    those of the training data by class, as in the authors' code."""
    rpn_sampler: RPNSamplerName | None = None
    """faster_rcnn: sampler that chooses the anchors on which the region proposal network (RPN) is trained, as
    --sampler.name does with RoIs; separate has half of them foreground at most; none of them uses NMS. Default: random
    anchors, as torchvision does."""
    rpn_batch_size: int | None = None
    """faster_rcnn: number of anchors of each image on which the RPN is trained. Default: 256."""
    rpn_score_thresh: float | None = None
    """faster_rcnn: lowest score of a proposal of the RPN, in training and in tests. Default: that of torchvision, 0 for
    resnet50 and 0.05 for the other networks."""


@_heading("Data")
@dataclass(frozen=True)
class DataConfig:
    """Images, and their size as the network gets them."""

    train: tuple[str, ...] = ()
    """Data sets to train on: FOLDER:SPLIT (VOC layout), ANNOTATIONS.json:IMAGES (COCO) or data.yaml:SPLIT (YOLO).
    Several are concatenated. They may be remote (https://, s3://, gs://) or in zip and tar archives."""
    negatives: tuple[str, ...] = ()
    """Folders of images without any object, which are trained as background; folders below them are searched too. And
    files of `ohem hard`: their regions of training images are trained on at each visit of the image."""
    leave_out: str | None = None
    """File with names of images that are not trained on, one in each line: file names without suffix, in YOLO layout
    relative to the root. `ohem audit` judges the annotations of images that a detector was not trained on."""
    test: tuple[str, ...] = ()
    """Data sets to evaluate on."""
    classes: tuple[str, ...] = ()
    """Names of the foreground classes, in order. Default: those of the training annotations."""
    skip_others: bool = False
    """Skip objects of other classes with a warning instead of an error. With --data.classes they are always skipped."""
    short: int = 600
    """Length of the short side of the resized image, in pixels."""
    long: int = 1000
    """Highest length of the long side of the resized image, in pixels."""
    scales: tuple[int, ...] = ()
    """Multi-scale training (M): lengths of the short side, one of which is drawn at random for each image. Default: the
    single length --data.short."""
    pyramid: bool = False
    """Train on each image in all lengths of --data.scales in every step. The sampler chooses among the RoIs of all."""
    flip: bool = True
    """Mirror half of the images at random."""
    workers: int = 0
    """Number of processes that read images in advance."""


@_heading("Proposals")
@dataclass(frozen=True)
class ProposalConfig:
    """The proposals of the images."""

    mode: tuple[ProposalMode, ...] = ("fast",)
    """Methods, one or several, whose union is used. fast, quality: modes of selective search; edge-boxes: Edge
    Boxes, at most 2000 of an image; alone, sliding: a dense grid of windows, which is not stored; none: no proposals,
    for a detector that makes its own."""
    edge_model: str | None = None
    """edge-boxes: file of the trained edge detector, a structured forest, such as model.yml.gz of OpenCV."""
    windows: int = 20_000
    """sliding: number of windows of an image; up to some percent fewer, since the grid is regular."""
    seed: int = 0
    """Seed of selective search."""
    width: int = 500
    """Highest width in pixels at which a method sees an image; wider ones are reduced. R-CNN has 500. 0: no image is
    reduced."""
    top: int = 2000
    """Highest number of proposals of an image, of each method; the first ones are used. sliding uses all of its
    windows."""
    files: tuple[str, ...] = ()
    """Files of boxes that replace the methods: .mat of the original release, .json, .npz or .safetensors."""
    folder: str | None = None
    """Folder for the proposal files. Default: the folder of the data."""
    jobs: int = -1
    """Number of processes that make proposals; -1 uses all cores."""


@_heading("Sampler")
@dataclass(frozen=True)
class SamplerConfig:
    """The RoIs that the detector is trained on. An option that is not given has the default of the sampler."""

    name: SamplerName = "ohem"
    """ohem: online hard example mining; random: the heuristic of Fast R-CNN; all: every RoI; builtin: the detector of
    torchvision without mining. release, mmdetection: OHEM as those programs have it; separate: foreground and
    background mined separately. rank, proportional: sampled with a probability that increases with the loss;
    iou_balanced (Libra R-CNN); hierarchical (PISA); ratio: hardest background at a ratio to the foreground (SSD);
    noise_aware: OHEM that sets aside background which resembles an object without a box."""
    batch_size: int | None = None
    """Number of RoIs of each image (B / N)."""
    fg_fraction: float | None = None
    """random, separate, mmdetection, iou_balanced: highest share of foreground RoIs."""
    bg_lo: float | None = None
    """random: lowest IoU of a background RoI with an object."""
    nms_iou: float | None = None
    """ohem, release, separate, mmdetection, ratio, noise_aware: IoU above which a harder RoI suppresses another one; 1
    switches NMS off. hierarchical: IoU above which RoIs are neighbours."""
    per_image: bool | None = None
    """ohem, release, separate, mmdetection: choose the hardest RoIs of each image, not those of the mini-batch."""
    suppress: Literal["image", "label"] | None = None
    """ohem, release, separate, mmdetection: NMS among all RoIs of an image, or among those of the same label."""
    inclusive: bool | None = None
    """ohem, release, separate, mmdetection: count the last pixel of a box as part of it in NMS."""
    cls_weight: float | None = None
    """ohem, release, separate, mmdetection, hierarchical: weight of the classification loss in the ranking."""
    box_weight: float | None = None
    """ohem, release, separate, mmdetection, hierarchical: weight of the box regression loss in the ranking; 0 ranks by
    the classification loss alone."""
    pressure: float | None = None
    """rank: probability of the hardest RoI divided by that of the easiest RoI."""
    negatives_per_positive: float | None = None
    """ratio: number of background RoIs for each foreground RoI."""
    confidence: float | None = None
    """noise_aware: probability of an object from which on a background RoI is set aside."""
    far: float | None = None
    """noise_aware: only background RoIs with a lower IoU with every object are set aside."""
    warmup: int | None = None
    """noise_aware: number of steps before any RoI is set aside."""


@_heading("Solver")
@dataclass(frozen=True)
class SolverConfig:
    """Stochastic gradient descent (SGD; paper, section 5.1)."""

    steps: int = 80_000
    """Number of mini-batches."""
    lr: float = 0.001
    """Learning rate of the weights."""
    decay_every: int = 30_000
    """Number of steps between reductions of the learning rate."""
    gamma: float = 0.1
    """Factor by which a reduction multiplies the learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0005
    """Weight decay of the weights; biases have none."""
    bias_lr: float = 2.0
    """Learning rate of the biases, as a multiple of --solver.lr."""
    warmup: int = 0
    """Number of steps in which the learning rate increases linearly to --solver.lr."""
    clip: float = 0.0
    """Highest norm of the gradient; 0 does not clip."""
    images: int = 2
    """Number of images of a mini-batch (N), over all processes."""
    accumulate: bool = False
    """Add the gradients of N passes of one image each, instead of one pass of N images. It needs less memory."""
    rank_first: bool = False
    """With --solver.accumulate: rank the RoIs of all images of the mini-batch before the passes that train, so that the
    sampler chooses as in one pass of N images. The convolutional network runs once more on each image."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, flips, sampling and dropout."""


@_heading("Test")
@dataclass(frozen=True)
class TestConfig:
    """The test of a detector. It may change when a run is resumed, and in each evaluation."""

    scales: tuple[int, ...] = ()
    """Multi-scale testing (M): lengths of the short side, in pixels. Default: --data.short."""
    long: int | None = None
    """Highest length of the long side, in pixels. Default: --data.long."""
    merge: Literal["union", "nearest"] = "union"
    """With several scales: union uses the boxes of all scales; nearest uses each box at the scale at which its area is
    nearest to 224 x 224."""
    iterations: int = 1
    """Number of times that boxes are scored and regressed; 2 with --test.voting is the paper's B."""
    rescore_score: float = 0.05
    """With several iterations: lowest score of a box that is scored and regressed again."""
    first_nms_iou: float | None = None
    """IoU of an NMS of the proposals of a class before the first regression. MR-CNN: 0.95. Default: no NMS."""
    first_top: int | None = None
    """Highest number of proposals of a class that are regressed. MR-CNN: 200. Default: all."""
    voting: bool = False
    """Replace a detection by the mean of the boxes of its class around it, weighted by their scores."""
    vote_iou: float = 0.5
    """IoU above which a box votes for a detection."""
    vote_at_least: bool = False
    """Let boxes vote also if their IoU is exactly --test.vote-iou, as in MR-CNN."""
    vote_added: float = 0.0
    """Number that is added to a score to make the weight of a vote. MR-CNN: 1.5, for scores of SVMs."""
    voters: Literal["all", "scored"] = "all"
    """Boxes that vote: all boxes of all iterations, or those with a score of at least --test.score."""
    score: float = 0.001
    """Lowest score of a detection."""
    nms_iou: float = 0.3
    """IoU of the NMS of each class."""
    max_detections: int = 300
    """Highest number of detections of an image."""


@_heading("Run")
@dataclass(frozen=True)
class RunConfig:
    """Machine, logs and checkpoints. They may change when a run is resumed."""

    accelerator: str = "auto"
    """Device: auto, cpu, cuda, mps, ..."""
    devices: str = "1"
    """Number of processes, one for each GPU; auto uses every GPU. With torchrun, the processes that it started."""
    precision: Precision = "32-true"
    """Precision of the arithmetic. Losses are always ranked in float32."""
    log_every: int = 10
    """Number of steps between rows of metrics.csv."""
    loggers: tuple[LoggerName, ...] = ("csv",)
    """Where the rows go: metrics.csv, which is always written, and TensorBoard, Weights & Biases or MLflow."""
    pictures_every: int = 0
    """Number of steps between pictures of the hardest RoIs in TensorBoard, Weights & Biases or MLflow; 0 draws none."""
    checkpoint_every: int = 1000
    """Number of steps between checkpoints."""
    snapshot_every: int = 0
    """Number of steps between snapshots (weights that are kept in RUN/snapshots); 0 keeps none."""
    mining_log: bool = True
    """Log what is mined in RUN/mining: which RoIs of which images, and how often; `ohem report` shows it."""
    loss_every: int = 0
    """Number of steps between measurements of the mean loss over all RoIs of the training images (RUN/loss_all.csv);
    0 does not measure it."""


@dataclass(frozen=True)
class Recipe:
    """All options of a training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    test: TestConfig = field(default_factory=TestConfig)
    run: RunConfig = field(default_factory=RunConfig)
