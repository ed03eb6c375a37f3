"""Names of ohem 0.1: refused on the command line and in --config files, translated in recipe.yaml of old runs."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
import yaml

from ohem.config.methods import METHODS
from ohem.config.recipe_file import read_recipe_file, read_run
from ohem.config.recipes import RECIPES
from ohem.config.renamed import COMMAND_OPTIONS, OPTIONS, VALUES
from ohem.config.resolve import parse_options
from ohem.config.schema import SamplerConfig
from ohem.errors import InputError
from ohem.experiments.methods import parse_method
from tests.helpers.command_line import Forked, ohem, sentence
from tests.helpers.toy_data import training

BASE = RECIPES["small-frcn"].recipe
OLD_SAMPLER = {
    "name": "ohem",
    "batch_size": 64,
    "fg_fraction": 0.25,
    "bg_lo": 0.1,
    "nms_iou": 0.7,
    "per_image": True,
    "suppress": "image",
    "inclusive": False,
    "classifier": 1.0,
    "box_reg": 1.0,
    "pressure": 100.0,
    "negatives_per_positive": 3.0,
}
"""Options of a sampler that 0.1 wrote into recipe.yaml, with its defaults."""
OLD_METHODS: Mapping[str, dict[str, Any]] = {
    "frcn": {"name": "random"},
    "frcn-bg0": {"name": "random", "bg_lo": 0.0},
    "frcn-n1": {"name": "random", "batch_size": 128},
    "frcn-n1-bg0": {"name": "random", "batch_size": 128, "bg_lo": 0.0},
    "all": {"name": "random", "batch_size": 1024, "bg_lo": 0.0},
    "all-n1": {"name": "random", "batch_size": 2048, "bg_lo": 0.0},
    "ohem": {"name": "ohem"},
    "ohem-n1": {"name": "ohem", "batch_size": 128},
    "ohem-no-nms": {"name": "ohem", "nms_iou": 1.0},
    "ohem-release": {"name": "ohem", "per_image": False, "suppress": "label", "inclusive": True},
    "separate": {"name": "separate", "nms_iou": 1.0},
    "rank": {"name": "rank"},
    "mmdetection": {"name": "separate", "nms_iou": 1.0, "box_reg": 0.0},
    "iou-balanced": {"name": "iou_balanced"},
    "hierarchical": {"name": "hierarchical", "nms_iou": 0.5, "box_reg": 0.0},
    "proportional": {"name": "proportional"},
    "builtin": {"name": "own"},
    "ratio": {"name": "ratio", "nms_iou": 1.0},
}
"""Options of the samplers of the methods of 0.1, where they are not the defaults."""


def write_as_0_1(path: Path, sampler: Mapping[str, Any] = OLD_SAMPLER) -> None:
    """Writes a recipe.yaml of today as ohem 0.1 wrote it, with its names and its checksum."""
    content = yaml.safe_load(path.read_text())
    del content["checksum"]
    content["model"] = {
        "rescored" if option == "rescore_top" else option: value for option, value in content["model"].items()
    }
    content["sampler"] = dict(sampler)
    proposals = content["proposals"]
    (proposals["mode"],) = proposals["mode"]
    del proposals["edge_model"]
    checksum = f"{crc32(json.dumps(content, sort_keys=True, default=str).encode()):08x}"
    path.write_text(yaml.safe_dump({**content, "checksum": checksum}, sort_keys=False))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with runs of two and of four steps of demo-ohem."""
    folder = tmp_path_factory.mktemp("runs")
    for steps in (2, 4):
        assert ohem("train", folder / str(steps), *training(data, steps=steps)).code == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Returns a copy of the run of two steps, in the form that 0.1 wrote."""
    run = Path(shutil.copytree(trained / "2", tmp_path / "run"))
    write_as_0_1(run / "recipe.yaml")
    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--sampler.classifier", "1"], "--sampler.classifier is called --sampler.cls-weight"),
        (["train", "--sampler.box-reg", "0"], "--sampler.box-reg is called --sampler.box-weight"),
        (["train", "--model.rescored", "8"], "--model.rescored is called --model.rescore-top"),
        (["train", "--sampler.name", "own"], "--sampler.name own is called builtin"),
        (["compare", "--arms", "frcn", "ohem"], "--arms is called --methods"),
        (["bench", "--apart"], "--apart is called --sequential"),
        (["reproduce", "table1", "--sampler.box-reg", "0"], "--sampler.box-reg is called --sampler.box-weight"),
    ],
)
def test_old_option_is_refused_with_its_new_name(arguments: list[str], message: str) -> None:
    assert message in sentence(ohem(*arguments))
    if len(arguments) > 2:
        *command, option, value = arguments if "--arms" not in arguments else arguments[:-1]
        assert message in sentence(ohem(*command, f"{option}={value}"))


def test_every_old_option_is_tested() -> None:
    assert set(OPTIONS) == {"sampler.classifier", "sampler.box_reg", "model.rescored"}
    assert set(COMMAND_OPTIONS) == {"--arms", "--apart"}
    assert VALUES == {"sampler.name": {"own": "builtin"}}


def test_class_may_have_an_old_name() -> None:
    recipe = parse_options(["--data.classes=own", "--data.classes=--arms"], BASE)
    assert recipe.data.classes == ("own", "--arms")


def test_old_option_of_a_method_is_refused_with_its_new_name() -> None:
    with pytest.raises(InputError, match=r"--sampler\.classifier is called --sampler\.cls-weight"):
        parse_method("ohem,sampler.classifier=0.5", BASE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sampler: {classifier: 1.0}\n", "sampler.classifier -> sampler.cls_weight"),
        ("sampler: {box_reg: 1.0}\n", "sampler.box_reg -> sampler.box_weight"),
        ("model: {rescored: 8}\n", "model.rescored -> model.rescore_top"),
        ("sampler: {name: own}\n", "sampler.name own -> builtin"),
    ],
)
def test_old_name_in_a_config_file_is_refused_with_its_new_name(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    text = sentence(ohem("train", tmp_path / "run", "--recipe", "demo-ohem", "--config", config))
    assert text == f"{config} has option names of ohem 0.1: rename {message}"


def test_old_run_is_evaluated_with_one_warning(run: Path, tmp_path: Path) -> None:
    result = Forked("eval", run, folder=tmp_path).wait()
    assert result.code == 0, result
    warnings = [line for line in result.err.splitlines() if line.startswith("ohem: warning: ")]
    changes = ", ".join(f"{old} -> {new}" for old, new in OPTIONS.items())
    assert warnings == [
        f"ohem: warning: {run / 'recipe.yaml'} was written by ohem 0.1, and is read with the names of today: {changes}"
    ]
    assert (run / "eval.json").exists()


def test_old_run_is_resumed_to_the_same_weights(run: Path, data: Path, trained: Path) -> None:
    with pytest.warns(UserWarning, match=r"was written by ohem 0\.1"):
        assert ohem("train", run, *training(data, steps=4)).code == 0
    weights, expected = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["model"] for folder in (run, trained / "4")
    )
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert read_recipe_file(run) == read_recipe_file(trained / "4")  # written with the names of today, without warning


def test_other_options_of_an_old_run_are_refused(run: Path, data: Path) -> None:
    with pytest.warns(UserWarning, match=r"was written by ohem 0\.1"):
        text = sentence(ohem("train", run, *training(data, steps=4), "--sampler.nms-iou", 0.5))
    assert "sampler.nms_iou not given, not 0.5" in text


def test_changed_recipe_of_an_old_run_is_noticed(run: Path) -> None:
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("lr: 0.02", "lr: 0.04"))
    with (
        pytest.warns(UserWarning, match="was changed after it was written"),
        pytest.warns(UserWarning, match=r"was written by ohem 0\.1"),
    ):
        assert read_run(run).solver.lr == 0.04


def read_old_sampler(trained: Path, run: Path, options: Mapping[str, Any]) -> SamplerConfig:
    """Writes recipe.yaml as 0.1 did, with these options of the sampler, and reads them."""
    run.mkdir()
    shutil.copy(trained / "2" / "recipe.yaml", run)
    write_as_0_1(run / "recipe.yaml", OLD_SAMPLER | options)
    with pytest.warns(UserWarning, match=r"was written by ohem 0\.1"):
        return read_run(run).sampler


def test_every_method_has_an_old_sampler() -> None:
    new = {"ohem-rpn", "noise-aware", "mr-cnn", "mr-cnn-ohem", "sppnet", "sppnet-ohem"}
    assert set(OLD_METHODS) == set(METHODS) - new


@pytest.mark.parametrize("method", OLD_METHODS)
def test_sampler_of_an_old_run_is_that_of_the_method(method: str, trained: Path, tmp_path: Path) -> None:
    sampler = read_old_sampler(trained, tmp_path / "run", OLD_METHODS[method])
    assert sampler == METHODS[method].change(BASE).sampler


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "hierarchical"}, {"nms_iou": 0.7, "box_weight": 1.0}),
        ({"name": "ratio"}, {"nms_iou": 0.7}),
        ({"name": "ohem", "nms_iou": 0.5, "box_reg": 0.0}, {"nms_iou": 0.5, "box_weight": 0.0}),
        ({"name": "ohem", "per_image": False}, {"per_image": False}),
    ],
)
def test_options_that_are_not_the_defaults_of_the_sampler_are_kept(
    options: dict[str, Any], expected: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    sampler = vars(read_old_sampler(trained, tmp_path / "run", options))
    assert {name: value for name, value in sampler.items() if value is not None} == {
        "name": options["name"],
        "batch_size": 64,
        **expected,
    }
