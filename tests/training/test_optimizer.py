"""SGD: learning rates and weight decay of weights and biases."""

from ohem.config.recipes import RECIPES
from ohem.config.schema import SolverConfig
from ohem.inputs.datasets import with_classes
from ohem.models.build import build_model
from ohem.samplers import AllSampler
from ohem.training.optimizer import build_optimizer


def test_biases_learn_twice_as_fast_and_do_not_decay() -> None:
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a", "b"))
    model = build_model(recipe, AllSampler())
    weights, biases = build_optimizer(model, SolverConfig(), fused=False).param_groups
    assert (weights["factor"], weights["weight_decay"]) == (1.0, 0.0005)
    assert (biases["factor"], biases["weight_decay"]) == (2.0, 0.0)
    named = {id(p): name for name, p in model.named_parameters()}
    assert all(named[id(p)].endswith("bias") for p in biases["params"])
    assert len(weights["params"]) + len(biases["params"]) == len(named)


def test_frozen_layers_are_not_optimized() -> None:
    recipe = RECIPES["small-ohem"].recipe
    model = build_model(with_classes(recipe, ("a",)), AllSampler())
    optimized = {
        id(p) for group in build_optimizer(model, recipe.solver, fused=False).param_groups for p in group["params"]
    }
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(optimized) < len(list(model.parameters()))
