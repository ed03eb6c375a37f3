"""From a recipe to the detector, its sampler and its box refinement."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from ohem.config import schema
from ohem.config.recipes import RECIPES
from ohem.config.schema import BACKBONES_OF, BackboneName, DetectorName, SamplerConfig
from ohem.data.loader import Example
from ohem.detection.backbones import BACKBONES, Pretrained
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.multiscale import nearest, union
from ohem.detection.post_process import PostProcess
from ohem.detection.regions import FOREGROUND, REGIONS, Regions
from ohem.inputs.datasets import with_classes
from ohem.models.build import build_model, build_refinement, build_regions, build_sampler, initialise
from ohem.models.torchvision import STAGES
from ohem.samplers import (
    AllSampler,
    HierarchicalSampler,
    IoUBalancedSampler,
    OHEMSampler,
    ProportionalSampler,
    RandomSampler,
    RankSampler,
)


def test_sampler_has_the_options_of_the_recipe() -> None:
    config = SamplerConfig(batch_size=8, fg_fraction=0.5, bg_lo=0.0, nms_iou=0.6, per_image=False, suppress="label")
    assert build_sampler(replace(config, name="random")) == RandomSampler(8, 0.5, bg_lo=0.0)
    assert build_sampler(config) == OHEMSampler(8, 0.6, False, "label")
    assert build_sampler(replace(config, nms_iou=1.0)) == OHEMSampler(8, 1.0, False, "label")
    assert build_sampler(replace(config, name="all")) == AllSampler()
    assert build_sampler(replace(config, name="separate")) == OHEMSampler(8, 0.6, False, "label", fg_fraction=0.5)
    assert build_sampler(replace(config, name="rank", pressure=9.0)) == RankSampler(8, 9.0)
    assert build_sampler(replace(config, name="iou_balanced")) == IoUBalancedSampler(8, 0.5)
    assert build_sampler(replace(config, name="hierarchical")) == HierarchicalSampler(8, 0.6)
    assert build_sampler(replace(config, box_weight=0.0)).box_weight == 0.0  # type: ignore[attr-defined]
    assert build_sampler(replace(config, name="proportional")) == ProportionalSampler(8)


def test_dropout_is_that_of_the_recipe() -> None:
    recipe = with_classes(RECIPES["small-ohem"].recipe, ("a",))
    for dropout in (0.0, 0.25):
        model = build_model(replace(recipe, model=replace(recipe.model, dropout=dropout)), AllSampler())
        actual = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert actual == [dropout, dropout]


def test_detector_has_the_regions_of_the_recipe() -> None:
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a",))
    assert build_regions(recipe.model) is None
    assert build_regions(replace(recipe.model, regions=("mr_cnn",))) == Regions()
    whole = replace(recipe.model, regions=("mr_cnn",), foreground_features=True)
    assert build_regions(whole) == Regions(foreground=FOREGROUND)
    few = replace(recipe.model, regions=("left", "context"), box_region=0.0)
    assert build_regions(few) == Regions((REGIONS["left"], REGIONS["context"]), None)
    model = build_model(replace(recipe, model=few), AllSampler())
    assert isinstance(model, FastRCNN)
    assert model.regions == (REGIONS["left"], REGIONS["context"])


def test_every_region_starts_with_the_weights_of_the_roi_head(tmp_path: Path) -> None:
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a",))
    weights = tmp_path / "weights.safetensors"
    save_file(BACKBONES["tiny"]().state_dict(), weights)
    options = replace(recipe.model, weights=str(weights), regions=("mr_cnn",))
    model = build_model(replace(recipe, model=options), AllSampler())
    assert isinstance(model, FastRCNN)
    initialise(model, [], replace(recipe, model=options))  # type: ignore[arg-type]
    for network in (model.backbone.roi_head, *model.stacks):
        state = network.state_dict()
        assert torch.equal(state["1.weight"], load_file(weights)["roi_head.1.weight"])
    assert len(model.stacks) == 10


def test_a_first_layer_that_published_weights_do_not_fit_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy network has the place of VGG16, whose fc6 has 25,088 inputs; a pyramid has 25,600."""
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a",))
    weights = tmp_path / "weights.safetensors"
    toy = BACKBONES["tiny"]()
    save_file({name: value for name, value in toy.state_dict().items() if "input" not in name}, weights)
    model = build_model(replace(recipe, model=replace(recipe.model, pooling="pyramid")), AllSampler())
    assert isinstance(model, FastRCNN)
    ours = Pretrained(names={"features.": "features.", "roi_head.": "roi_head."}, replaced="roi_head.1.")
    model.backbone.pretrained = ours
    options = replace(recipe, model=replace(recipe.model, weights=str(weights), pooling="pyramid"))
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    initialise(model, [Example("a", 0, image, torch.zeros(0, 4), {}, 1.0)], options)  # type: ignore[arg-type]
    assert "the first fully connected layer starts at random" in capsys.readouterr().out
    state = model.backbone.state_dict()
    for name in ("features.0.weight", "roi_head.4.weight"):
        assert torch.equal(state[name], toy.state_dict()[name])


def test_detector_has_the_test_options_of_the_recipe() -> None:
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a",))
    model = build_model(recipe, AllSampler())
    assert (model.post_process, model.refinement, model.merge) == (PostProcess(0.001, 0.3, 300), None, union)
    test = schema.TestConfig(merge="nearest", iterations=2, score=0.1, nms_iou=0.4, max_detections=7)
    model = build_model(replace(recipe, test=test), AllSampler())
    assert (model.post_process, model.merge) == (PostProcess(0.1, 0.4, 7), nearest)
    assert model.refinement == BoxRefinement(2, voting=False)


def test_refinement_has_the_options_of_the_recipe() -> None:
    plain = schema.TestConfig()
    assert build_refinement(plain) is None
    assert build_refinement(replace(plain, iterations=2, voting=True)) == BoxRefinement()
    options = {
        "iterations": 3,
        "rescore_score": 0.2,
        "first_nms_iou": 0.95,
        "first_top": 200,
        "voting": True,
        "vote_iou": 0.6,
        "vote_at_least": True,
        "vote_added": 1.5,
        "voters": "scored",
    }
    assert build_refinement(replace(plain, **options)) == BoxRefinement(**options)  # type: ignore[arg-type]
    for name in ("voting", "first_nms_iou", "first_top"):
        assert build_refinement(replace(plain, **{name: options[name]})) is not None


def test_backbones_of_the_options_are_those_that_can_be_built() -> None:
    assert set(BACKBONES_OF) == set(get_args(DetectorName))
    assert set(BACKBONES_OF["fast_rcnn"]) == set(BACKBONES)
    assert set(BACKBONES_OF["faster_rcnn"]) == set(STAGES)
    assert set(BACKBONES_OF["ssdlite"]) <= set(STAGES)
    assert {name for names in BACKBONES_OF.values() for name in names} == set(get_args(BackboneName))
