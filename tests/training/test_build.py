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
from ohem.proposals.store import Proposals
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
    check_cached,
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


def test_boxes_outside_their_picture_are_refused(data: Path, tmp_path: Path) -> None:
    """Pictures are 80 x 64; up to a pixel more is rounding."""
    dataset = build_data([f"{data}:train"], (), "--data.train")
    for box, allowed in (([1.0, 1, 65, 81], True), ([1.0, 1, 66, 80], False), ([1.0, 1, 64, 83], False)):
        boxes, images = (np.empty((1, 6), dtype=object) for _ in range(2))
        for i, stem in enumerate("abcdef"):
            boxes[0, i], images[0, i] = np.array([box if stem == "c" else [1.0, 1, 30, 40]]), stem
        path = tmp_path / "p.mat"
        scipy.io.savemat(path, {"boxes": boxes, "images": images})
        if allowed:
            assert build_proposals(dataset, ProposalConfig(files=(str(path),)))["c"].tolist() == [[0, 0, 81, 65]]
        else:
            with pytest.raises(InputError, match=r"p\.mat: the boxes of c: .*outside the picture of 80 x 64 pixels"):
                build_proposals(dataset, ProposalConfig(files=(str(path),)))


def test_a_cache_of_another_size_of_the_picture_is_refused(data: Path, tmp_path: Path) -> None:
    dataset = build_data([f"{data}:test"], (), "--data.test")
    config = ProposalConfig(folder=str(tmp_path), jobs=1)
    build_proposals(dataset, config)
    (path,) = tmp_path.iterdir()
    cached = Proposals.load(path)
    wide = {name: found + np.array([0, 0, 70, 0], np.float32) for name, found in cached.items()}
    Proposals.from_boxes(wide, cached.digests, cached.metadata).save(path)
    with pytest.raises(InputError, match=r"safetensors: the boxes of g: .*outside the picture of 80 x 64 pixels"):
        build_proposals(dataset, config)["g"]


def test_other_processes_do_not_wait_for_proposals_that_are_missing(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy", {"train": "ab", "more": "abc"})
    config = ProposalConfig(folder=str(tmp_path / "proposals"), jobs=1)
    data = build_data([f"{folder}:train"], (), "--data.train")
    with pytest.raises(InputError, match="has no proposals yet"):
        check_cached(data, config)
    build_proposals(data, config)
    check_cached(data, config)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    (folder / "JPEGImages" / "c.png").write_bytes((folder / "JPEGImages" / "c.png").read_bytes())
    data = build_data([f"{folder}:train"], (), "--data.train")
    with pytest.raises(InputError, match="or not of all its images"):
        check_cached(data, config)
    assert len(build_proposals(data, config)) == 3
    check_cached(data, config)


def test_two_folders_of_one_name_do_not_share_a_file_of_proposals(tmp_path: Path) -> None:
    sources = [f"{make_toy(tmp_path / place / 'toy', {'train': 'ab'})}:train" for place in ("one", "two")]
    data = build_data(sources, (), "--data.train")
    with pytest.raises(InputError, match=r"would both be kept in .*toy\.train\.selective"):
        build_proposals(data, ProposalConfig(folder=str(tmp_path / "proposals"), jobs=1))
    assert len(build_proposals(data, ProposalConfig(jobs=1))) == 4


def test_training_on_mat_files(data: Path, tmp_path: Path) -> None:
    mat = write_mat(tmp_path / "all.mat", "abcdefgh")
    run = tmp_path / "run"
    assert ohem("train", run, *training(data), "--proposals.files", mat).code == 0
    assert ohem("eval", run).code == 0
    assert not (data / "Proposals").exists()


def test_given_classes_are_kept_in_order(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="train has no object of 1 of the classes: 'green'"):
        assert ohem("train", tmp_path / "run", *training(data), "--data.classes", "red", "blue", "green").code == 0
    assert "classes:\n  - red\n  - blue\n  - green\n" in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.filterwarnings("ignore:.*test. skipped 2 objects")
def test_objects_of_other_classes_are_skipped(data: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"train: skipped 6 objects of other classes than 'red': 'blue'"):
        assert ohem("train", tmp_path / "run", *training(data), "--data.classes", "red").code == 0
    with pytest.warns(UserWarning, match=r"test: skipped 2 objects of other classes than 'red': 'blue'"):
        assert ohem("eval", tmp_path / "run").code == 0
    with pytest.warns(UserWarning, match="skipped"):
        text = sentence(ohem("train", tmp_path / "other", *training(data), "--data.classes", "rad"))
    assert "has no object of the classes 'rad': give some of 'blue', 'red' with --data.classes" in text
