"""From a recipe to data, proposals, samplers and the optimizer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from ohem.detection.inference import PostProcess
from ohem.detection.multiscale import nearest, union
from ohem.detection.refinement import BoxRefinement
from ohem.errors import InputError
from ohem.samplers import (
    AllSampler,
    HierarchicalSampler,
    IoUBalancedSampler,
    OHEMSampler,
    ProportionalSampler,
    RandomSampler,
    RankSampler,
)
from ohem.training import config
from ohem.training.build import (
    build_data,
    build_optimizer,
    build_proposals,
    build_sampler,
    sides_to_test,
    with_classes,
)
from ohem.training.config import ProposalConfig, SamplerConfig, SolverConfig
from ohem.training.detectors import build_model, build_refinement
from ohem.training.recipes import RECIPES
from tests.command_line import ohem, sentence
from tests.toy import make_toy, training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("data") / "toy")


def write_mat(path: Path, stems: str) -> Path:
    """Proposals of the original release: y1, x1, y2, x2, 1-based and inclusive."""
    boxes, images = (np.empty((1, len(stems)), dtype=object) for _ in range(2))
    for i, stem in enumerate(stems):
        boxes[0, i] = np.array([[1.0, 1.0, 30.0, 40.0], [5.0 + i, 11.0, 28.0, 60.0]])
        images[0, i] = stem
    scipy.io.savemat(path, {"boxes": boxes, "images": images})
    return path


def test_samplers_have_the_settings_of_the_recipe() -> None:
    config = SamplerConfig(batch_size=8, fg_fraction=0.5, bg_lo=0.0, nms_iou=0.6, per_image=False, suppress="label")
    assert build_sampler(replace(config, name="random")) == RandomSampler(8, 0.5, bg_iou=(0.0, 0.5))
    assert build_sampler(config) == OHEMSampler(8, 0.6, False, "label")
    assert build_sampler(replace(config, nms_iou=1.0)) == OHEMSampler(8, None, False, "label")
    assert build_sampler(replace(config, name="all")) == AllSampler()
    assert build_sampler(replace(config, name="separate")) == OHEMSampler(8, 0.6, False, "label", fg_fraction=0.5)
    assert build_sampler(replace(config, name="rank", pressure=9.0)) == RankSampler(8, 9.0)
    assert build_sampler(replace(config, name="iou_balanced")) == IoUBalancedSampler(8, 0.5)
    assert build_sampler(replace(config, name="hierarchical", box_reg=0.0)) == HierarchicalSampler(8, 0.6)
    assert build_sampler(replace(config, box_reg=0.0)).box_reg == 0.0  # type: ignore[attr-defined]
    assert build_sampler(replace(config, name="proportional")) == ProportionalSampler(8)


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


def test_dropout_of_the_recipe() -> None:
    recipe = with_classes(RECIPES["small-ohem"].recipe, ("a",))
    for dropout in (0.0, 0.25):
        model = build_model(replace(recipe, model=replace(recipe.model, dropout=dropout)), AllSampler())
        found = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert found == [dropout, dropout]


def test_the_detector_tests_as_the_recipe_says() -> None:
    recipe = with_classes(RECIPES["demo-ohem"].recipe, ("a",))
    model = build_model(recipe, AllSampler())
    assert (model.post_process, model.refinement, model.merge) == (PostProcess(0.001, 0.3, 300), None, union)
    test = config.TestConfig(merge="nearest", iterations=2, score=0.1, nms_iou=0.4, max_detections=7)
    model = build_model(replace(recipe, test=test), AllSampler())
    assert (model.post_process, model.merge) == (PostProcess(0.1, 0.4, 7), nearest)
    assert model.refinement == BoxRefinement(2, voting=False)


def test_refinement_of_the_recipe() -> None:
    plain = config.TestConfig()
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


def test_sides_of_the_recipe() -> None:
    recipe = RECIPES["small-ohem"].recipe
    assert sides_to_test(recipe) == ((400,), 667)
    assert sides_to_test(replace(recipe, data=replace(recipe.data, scales=(320, 480)))) == ((400,), 667)
    test = config.TestConfig(scales=(480, 320), long=1000)
    assert sides_to_test(replace(recipe, test=test)) == ((480, 320), 1000)


def test_mat_files_take_the_place_of_selective_search(data: Path, tmp_path: Path) -> None:
    files = (str(write_mat(tmp_path / "train.mat", "abc")), str(write_mat(tmp_path / "more.mat", "def")))
    dataset = build_data([f"{data}:train"], (), "--data.train")
    proposals = build_proposals(dataset, ProposalConfig(files=files))
    assert proposals["b"].tolist() == [[0, 0, 40, 30], [10, 5, 60, 28]]
    with pytest.raises(InputError, match="no proposals of 3 images, the first is d"):
        build_proposals(dataset, ProposalConfig(files=files[:1]))


def test_training_on_mat_files(data: Path, tmp_path: Path) -> None:
    mat = write_mat(tmp_path / "all.mat", "abcdefgh")
    run = tmp_path / "run"
    assert ohem("train", run, *training(data), "--proposals.files", mat).code == 0
    assert ohem("eval", run).code == 0
    assert not (data / "Proposals").exists()


def test_given_classes_are_kept_in_order(data: Path, tmp_path: Path) -> None:
    assert ohem("train", tmp_path / "run", *training(data), "--data.classes", "red", "blue", "green").code == 0
    assert "classes:\n  - red\n  - blue\n  - green\n" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "'blue'" in sentence(ohem("train", tmp_path / "other", *training(data), "--data.classes", "red"))
