"""The methods of table 2 of the paper. Imports nothing that takes long, since the command line lists them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ohem.config.methods import replace_options
from ohem.config.schema import BackboneName, Recipe, SamplerName

RESCORED = 128
"""RoIs of an image scored again in float32: then 99 % of the chosen are those of float32 (docs/results/speed.md)."""
LISTED = 256
"""RoIs of an image on the shortlist (docs/results/speed.md)."""
BACKBONES: tuple[BackboneName, ...] = ("vgg16", "vgg_cnn_m_1024", "squeezenet1_0")
Options = Mapping[str, dict[str, Any]]


def _options(sampler: SamplerName, *, accumulate: bool = False, **model: Any) -> Options:
    """Returns what a method replaces in a recipe; `model` are options of the model."""
    return {
        "sampler": {"name": sampler},
        "solver": {"accumulate": accumulate},
        "model": {"implementation": "read_only", "rescore_top": 0, "shortlist": 0, **model},
    }


# A method is one line here: `ohem bench` and `benchmarks.step` then measure it.
OPTIONS: Mapping[str, Options] = {
    "frcn": _options("random"),
    "frcn-accumulate": _options("random", accumulate=True),
    "ohem": _options("ohem"),
    "ohem-accumulate": _options("ohem", accumulate=True),
    "ohem-rescore-top": _options("ohem", rescore_top=RESCORED),
    "ohem-shortlist": _options("ohem", shortlist=LISTED),
    "ohem-shortlist-rescore-top": _options("ohem", shortlist=LISTED, rescore_top=RESCORED),
    "ohem-loss-layer": _options("ohem", implementation="loss_layer"),
}
BENCH_METHODS = tuple(OPTIONS)
if TYPE_CHECKING:
    BenchMethod: TypeAlias = str
else:
    BenchMethod = Literal[BENCH_METHODS]


def method_recipe(base: Recipe, backbone: BackboneName, method: BenchMethod) -> Recipe:
    """Returns `base` with the network `backbone`, and with the sampler and the gradients of `method`.

    A shortlist has the length of `base`, if that has one.
    """
    recipe = replace_options(replace_options(base, model={"backbone": backbone}), **OPTIONS[method])
    if recipe.model.shortlist and base.model.shortlist:
        return replace_options(recipe, model={"shortlist": base.model.shortlist})
    return recipe


def baseline(method: str) -> str:
    """Returns the method to compare `method` with: Fast R-CNN without mining, with gradients computed the same way."""
    return "frcn-accumulate" if method == "ohem-accumulate" else "frcn"
