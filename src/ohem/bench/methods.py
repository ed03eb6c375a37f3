"""The methods of table 2 of the paper. Imports nothing that takes long, since the command line lists them."""

from dataclasses import replace
from typing import Literal, get_args

from ohem.config.schema import BackboneName, Recipe

BenchMethod = Literal[
    "frcn",
    "frcn-accumulate",
    "ohem",
    "ohem-accumulate",
    "ohem-rescore-top",
    "ohem-shortlist",
    "ohem-shortlist-rescore-top",
    "ohem-loss-layer",
]
RESCORED = 128
"""RoIs of an image scored again in float32: then 99 % of the chosen are those of float32 (docs/results/speed.md)."""
LISTED = 512
"""RoIs of an image on the shortlist (docs/results/speed.md)."""
BENCH_METHODS: tuple[BenchMethod, ...] = get_args(BenchMethod)
BACKBONES: tuple[BackboneName, ...] = ("vgg16", "vgg_cnn_m_1024", "squeezenet1_0")


def method_recipe(base: Recipe, backbone: BackboneName, method: BenchMethod) -> Recipe:
    """Returns `base` with the network `backbone`, and with the sampler and the gradients of `method`."""
    implementation: Literal["read_only", "loss_layer"] = "loss_layer" if method == "ohem-loss-layer" else "read_only"
    rescore_top = RESCORED if method.endswith("rescore-top") else 0
    shortlist = LISTED if method.startswith("ohem-shortlist") else 0
    return replace(
        base,
        model=replace(
            base.model,
            backbone=backbone,
            implementation=implementation,
            rescore_top=rescore_top,
            shortlist=shortlist,
        ),
        sampler=replace(base.sampler, name="ohem" if method.startswith("ohem") else "random"),
        solver=replace(base.solver, accumulate=method.endswith("accumulate")),
    )


def baseline(method: str) -> str:
    """Returns the method to compare `method` with: Fast R-CNN without mining, with gradients computed the same way."""
    return "frcn-accumulate" if method == "ohem-accumulate" else "frcn"
