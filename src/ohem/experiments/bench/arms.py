"""What is compared in the paper's table 2, and its figures. Imports nothing heavy: the command line lists the arms."""

from dataclasses import replace
from typing import Literal, NamedTuple, get_args

from ohem.training.config import Backbone, Recipe

Arm = Literal["frcn", "frcn-accumulate", "ohem", "ohem-accumulate", "ohem-rescored", "ohem-loss-layer"]
RESCORED = 128
"""Of an image, again in float32: then 99 % of what is chosen is what float32 chooses (docs/results/speed.md)."""
ARMS: tuple[Arm, ...] = get_args(Arm)
BACKBONES: tuple[Backbone, ...] = ("vgg16", "vgg_cnn_m_1024", "squeezenet1_0")


class Figures(NamedTuple):
    """Of the paper: seconds an iteration, and GB of memory, on a Titan X."""

    seconds: float
    memory: float


PAPER: dict[str, dict[str, Figures]] = {
    "vgg_cnn_m_1024": {"frcn": Figures(0.13, 2.6), "ohem": Figures(0.22, 3.6)},
    "vgg16": {
        "frcn": Figures(0.60, 11.2),
        "frcn-accumulate": Figures(0.57, 6.4),
        "ohem-accumulate": Figures(1.00, 8.7),
    },
}


def arm_recipe(base: Recipe, backbone: Backbone, arm: Arm) -> Recipe:
    """`base` with the network `backbone`, its RoIs chosen and its gradients computed as `arm` says."""
    implementation: Literal["read_only", "loss_layer"] = "loss_layer" if arm == "ohem-loss-layer" else "read_only"
    rescored = RESCORED if arm == "ohem-rescored" else 0
    return replace(
        base,
        model=replace(base.model, backbone=backbone, implementation=implementation, rescored=rescored),
        sampler=replace(base.sampler, name="ohem" if arm.startswith("ohem") else "random"),
        solver=replace(base.solver, accumulate=arm.endswith("accumulate")),
    )


def baseline(arm: str) -> str:
    """The arm that `arm` is held against: Fast R-CNN without mining, its gradients computed in the same way."""
    return "frcn-accumulate" if arm == "ohem-accumulate" else "frcn"
