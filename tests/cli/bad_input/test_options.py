"""Bad options on the command line and in --config files."""

from pathlib import Path

import pytest
import torch

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training


def test_unknown_recipe_option_and_value_name_the_nearest(run: Path, data: Path) -> None:
    assert "did you mean demo-ohem" in sentence(ohem("train", run, "--recipe", "demo-ohm"))
    assert "--solver.lr?" in sentence(ohem("train", run, *training(data), "--solver.lrr", 1))
    assert "Did you mean" in sentence(ohem("train", run, *training(data), "--model.backbone", "vgg61"))
    assert "--solver.lr" in sentence(ohem("train", run, *training(data), "--solver.lr", "fast"))
    assert not run.exists()


def test_missing_recipe_names_the_command_that_lists_them(run: Path) -> None:
    assert "`ohem recipes` lists them" in sentence(ohem("train", run))


def test_unknown_command_names_the_nearest() -> None:
    assert "train" in sentence(ohem("trian"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--test.iterations", 0, "--test.iterations 0"),
        ("--test.scales", 0, "--test.scales 0"),
        ("--test.scalse", 480, "--test.scales"),
        ("--test.merge", "nearby", "nearest"),
        ("--test.voters", "none", "all"),
    ],
)
def test_bad_test_options(run: Path, data: Path, option: str, value: object, message: str) -> None:
    assert ohem("train", run, *training(data, steps=1)).code == 0
    assert message in sentence(ohem("eval", run, option, value))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--run.log-every", 0),
        ("--run.checkpoint-every", 0),
        ("--solver.decay-every", 0),
        ("--solver.images", 0),
        ("--solver.steps", 0),
        ("--sampler.batch-size", 0),
        ("--sampler.batch-size", -3),
        ("--sampler.fg-fraction", 2.5),
        ("--sampler.nms-iou", float("nan")),
        ("--data.short", 0),
        ("--solver.lr", -0.5),
    ],
)
def test_numbers_out_of_range(run: Path, data: Path, option: str, value: object) -> None:
    replaced = ("--data.short", 64, "--solver.images", "--solver.steps", 2)
    options = [argument for argument in training(data) if argument not in replaced]
    text = sentence(ohem("train", run, *options, f"{option}={value}"))
    assert f"{option} {value} is out of range: give " in text
    assert not run.exists()


def test_scales_must_be_lengths(run: Path, data: Path) -> None:
    assert "--data.scales -1" in sentence(ohem("train", run, *training(data), "--data.scales", 480, -1))
    assert not run.exists()


@pytest.mark.parametrize("option", ["--model.rescore-top", "--model.shortlist"])
@pytest.mark.parametrize("arguments", [[-1], [800, "--model.implementation", "loss_layer"]])
def test_options_of_the_ranking_need_a_count_and_the_read_only_pass(
    run: Path, data: Path, option: str, arguments: list[object]
) -> None:
    assert option in sentence(ohem("train", run, *training(data), option, *arguments))
    assert not run.exists()


def test_a_shortlist_has_as_many_rois_as_are_chosen(run: Path, data: Path) -> None:
    options = ["--model.shortlist", 20, "--sampler.batch-size", 21]
    assert "--model.shortlist 20 is fewer RoIs than the 21" in sentence(ohem("train", run, *training(data), *options))
    assert not run.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.regions", "left", "left"], "--model.regions has left twice: leave one out"),
        (["--model.regions", "mr_cnn", "left"], "--model.regions mr_cnn is all regions: leave out the others"),
        (["--model.box-region", 1.5], "--model.box-region 1.5 needs regions: add --model.regions mr_cnn"),
        (["--model.foreground-features"], "--model.foreground-features needs regions: add --model.regions mr_cnn"),
        (["--model.regions", "middle"], "--model.regions"),
        (
            ["--model.regions", "mr_cnn", "--model.detector", "ssdlite", "--model.backbone", "mobilenet_v3_large"],
            "--model.regions is not for --model.detector ssdlite",
        ),
    ],
)
def test_regions_that_do_not_fit(run: Path, data: Path, options: list[object], message: str) -> None:
    assert message in sentence(ohem("train", run, *training(data), *options))
    assert not run.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.backbone", "resnet50"],
            "--model.pooling pyramid is for a RoI head that begins with a fully connected",
        ),
        (["--model.detector", "ssdlite", "--model.backbone", "mobilenet_v3_large"], "--model.pooling is not for"),
    ],
)
def test_pyramids_need_a_head_of_linear_layers(run: Path, data: Path, options: list[object], message: str) -> None:
    assert message in sentence(ohem("train", run, *training(data), "--model.pooling", "pyramid", *options))
    assert not run.exists()


def test_fixed_layers_are_those_of_fast_rcnn(run: Path, data: Path) -> None:
    options = ["--model.detector", "ssdlite", "--model.backbone", "mobilenet_v3_large", "--model.frozen", "all"]
    assert "--model.frozen is not for --model.detector ssdlite" in sentence(
        ohem("train", run, *training(data), *options)
    )
    assert not run.exists()


def test_unknown_yaml_key_names_the_nearest(run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("solver:\n  momentun: 0.5\n")
    text = sentence(ohem("train", run, *training(data), "--config", config))
    assert "momentun" in text
    assert "momentum" in text
    assert str(config) in text


def test_malformed_and_missing_yaml(run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    assert str(config) in sentence(ohem("train", run, *training(data), "--config", config))
    for text in ("solver: [1\n", f"solver: {'[' * 2000}\n"):
        config.write_text(text)
        assert str(config) in sentence(ohem("train", run, *training(data), "--config", config))


@pytest.mark.parametrize("content", ["solver: 3\n", "[1, 2]\n", "", "{}\n"])
def test_yaml_must_be_nested(content: str, run: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    text = sentence(ohem("train", run, *training(data), "--config", config))
    assert str(config) in text
    assert "recipe.yaml" in text


def test_config_must_be_a_file(run: Path, data: Path, tmp_path: Path) -> None:
    text = sentence(ohem("train", run, *training(data), "--config", tmp_path))
    assert f"--config {tmp_path}: Is a directory" in text
    assert "YAML" not in text


def test_missing_weights(run: Path, data: Path) -> None:
    assert "nowhere.pth" in sentence(ohem("train", run, *training(data), "--model.weights", "nowhere.pth"))
    assert ohem("train", run, *training(data)).code == 0  # the first try left nothing in the folder


@pytest.mark.parametrize(
    "option", [["--run.accelerator", "cuda"], ["--run.accelerator", "abacus"], ["--devices", "0"], ["--devices", "two"]]
)
def test_devices_must_fit_the_machine(run: Path, data: Path, option: list[str]) -> None:
    if torch.cuda.is_available() and "cuda" in option:
        pytest.skip("this machine has a GPU")
    options = [argument for argument in training(data) if argument not in ("--run.accelerator", "cpu")]
    text = sentence(ohem("train", run, *options, *option))
    assert "do not fit this machine" in text
    assert option[1] in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.pyramid"], "name two or more short sides with --data.scales"),
        (["--solver.rank-first"], "--solver.rank-first is for --solver.accumulate"),
        (["--data.pyramid", "--data.scales", 48, 64, "--solver.accumulate"], "needs --solver.rank-first: add it"),
        (["--data.pyramid", "--data.scales", 48, 64, "--model.shortlist", 99], "--data.pyramid ranks all RoIs"),
        (["--solver.rank-first", "--solver.accumulate", "--model.shortlist", 99], "--solver.rank-first ranks all RoIs"),
    ],
)
def test_selection_over_a_mini_batch_needs_options_that_fit(
    options: list[object], message: str, run: Path, data: Path
) -> None:
    assert message in sentence(ohem("train", run, *training(data), *options))


def test_a_data_set_after_an_option_of_several_values(data: Path) -> None:
    text = sentence(ohem("propose", "--mode", "fast", f"{data}:train"))
    assert text.startswith(f'Invalid value "{data}:train" for --mode. Choose from: "fast", ')
    assert text.endswith("--mode takes all values up to the next option: give other arguments before it.")
