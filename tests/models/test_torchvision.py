"""torchvision's detectors in our loop: they equal what torchvision's constructors make, and all commands take them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights, WeightsEnum, detection, mobilenet_v2, mobilenet_v3_large
from torchvision.models.detection import faster_rcnn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from ohem.config.methods import replace_options
from ohem.config.recipes import RECIPES
from ohem.config.schema import ModelConfig, Recipe
from ohem.detection.detector import Detector
from ohem.experiments.compare import compare
from ohem.models.build import build_model, build_rpn_sampler
from ohem.models.torchvision import TorchvisionDetector, load_pretrained
from ohem.samplers import OHEMSampler, RatioSampler
from ohem.training import checkpoint
from ohem.training.logs.metrics_log import read_metrics
from tests.fuzz.commands import children_in_this_process
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training

RESNET = "fasterrcnn-resnet50-fpn"
MOBILE = "fasterrcnn-mobilenet-v3-large-320-fpn"
SSDLITE = "ssdlite320-mobilenet-v3-large"
BUILDERS = {
    RESNET: (detection.fasterrcnn_resnet50_fpn, {"min_size": 600, "max_size": 1000}),
    MOBILE: (detection.fasterrcnn_mobilenet_v3_large_320_fpn, {}),
    SSDLITE: (detection.ssdlite320_mobilenet_v3_large, {}),
}
SHORT = ["--model.weights", "none", "--run.log-every", 1]


class SmallHead(faster_rcnn.TwoMLPHead):
    """Has 8 hidden units in place of 1024, which have three quarters of the weights with MobileNetV3."""

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__(in_channels, 8)
        self.fc7 = nn.Linear(8, representation_size)


@pytest.fixture
def _small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster_rcnn, "TwoMLPHead", SmallHead)


SMALL = pytest.mark.usefixtures("_small_head")


def recipe_of(name: str, **model: Any) -> Recipe:
    return replace_options(RECIPES[name].recipe, model={"weights": "none", **model}, data={"classes": ("blue", "red")})


def built(recipe: Recipe) -> nn.Module:
    model = build_model(recipe, OHEMSampler())
    assert isinstance(model, TorchvisionDetector)
    return model.model


def settings(model: nn.Module) -> dict[str, str]:
    """Returns every plain value of a detector and its parts."""
    return {
        f"{where}.{name}": repr(value)  # in which there may be tensors
        for where, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | tuple | list | dict) and not name.startswith("_")
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_it_is_what_torchvisions_own_constructor_makes(name: str) -> None:
    build, options = BUILDERS[name]
    theirs = build(weights=None, weights_backbone=None, num_classes=3, **options)
    ours = built(recipe_of(name))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert settings(ours) == settings(theirs)
    assert not hasattr(ours, "mining")


@pytest.mark.parametrize("name", [MOBILE, SSDLITE])
def test_mining_is_on_in_the_other_recipe(name: str) -> None:
    model = built(recipe_of(f"{name}-ohem"))
    assert isinstance(model.mining.sampler, OHEMSampler)


@SMALL
@pytest.mark.parametrize(("name", "suffix"), [(MOBILE, ""), (MOBILE, "-ohem"), (SSDLITE, ""), (SSDLITE, "-ohem")])
def test_it_trains_resumes_evaluates_and_detects(name: str, suffix: str, tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    for run, steps in ((straight, 2), (halves, 1), (halves, 2)):
        pictures = ["--run.loggers", "tensorboard", "--run.pictures-every", 1] if suffix and run == straight else []
        assert ohem("train", run, *training(data, recipe=name + suffix, steps=steps), *SHORT, *pictures).code == 0
    weights = [checkpoint.load(run)["model"] for run in (straight, halves)]  # type: ignore[index]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    rows = read_metrics(straight)
    assert [bool(row["chosen"]) for row in rows] == [suffix != ""] * 2
    own = ["classification", "bbox_regression"] if name == SSDLITE else ["loss_objectness", "loss_classifier"]
    assert all(float(row[loss]) > 0 for row in rows for loss in own)

    assert ohem("eval", straight, "--metric", "voc07").code == 0
    assert ohem("detect", straight, data / "JPEGImages" / "a.png", "--out", tmp_path / "actual").code == 0
    assert (tmp_path / "actual" / "a.jpg").exists()
    assert not (data / "Proposals").exists()

    build, _ = BUILDERS[name]
    build(weights=None, weights_backbone=None, num_classes=3).load_state_dict(
        weights[0]
    )  # torchvision's own detector accepts it


@SMALL
def test_anchors_are_mined_and_logged(data: Path, tmp_path: Path) -> None:
    options = ["--model.rpn-sampler", "ohem", "--model.rpn-batch-size", 16]
    assert ohem("train", tmp_path / "run", *training(data, recipe=MOBILE, steps=1), *SHORT, *options).code == 0
    (row,) = read_metrics(tmp_path / "run")
    assert float(row["rpn_chosen"]) == 32
    assert float(row["rpn_loss_chosen"]) > float(row["rpn_loss_all"]) > 0
    assert float(row["chosen"]) > 0  # the RoIs that torchvision draws
    assert not row["loss_chosen"]


@SMALL
def test_run_from_before_the_rpn_had_options_is_resumed_without_new_columns(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, recipe=MOBILE, steps=1), *SHORT).code == 0
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["model"] = {name: value for name, value in content["model"].items() if not name.startswith("rpn_")}
    del content["checksum"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    assert ohem("train", run, *training(data, recipe=MOBILE, steps=2), *SHORT).code == 0
    rows = read_metrics(run)
    assert len(rows) == 2
    assert not any(name.startswith("rpn_") for row in rows for name in row)


def test_options_of_the_rpn() -> None:
    usual = built(recipe_of(MOBILE))
    assert (usual.rpn.fg_bg_sampler.batch_size_per_image, usual.rpn.score_thresh) == (256, 0.05)
    rpn = built(recipe_of(MOBILE, rpn_batch_size=99, rpn_score_thresh=0.0)).rpn
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.score_thresh) == (99, 0)
    assert not hasattr(rpn, "mining")
    expected = {"ohem": OHEMSampler(7, nms_iou=1.0), "separate": OHEMSampler(7, nms_iou=1.0, fg_fraction=0.5)}
    for name, sampler in expected.items():
        assert build_rpn_sampler(ModelConfig(rpn_sampler=name, rpn_batch_size=7)) == sampler  # type: ignore[arg-type]
    assert build_rpn_sampler(ModelConfig(rpn_sampler="ratio")) == RatioSampler(nms_iou=1.0)
    model = build_model(recipe_of(f"{MOBILE}-ohem"), OHEMSampler(8), OHEMSampler(16)).model  # type: ignore[union-attr]
    assert (model.mining.sampler, model.rpn.mining.sampler) == (OHEMSampler(8), OHEMSampler(16))


def test_boxes_come_back_in_pixels_of_the_image() -> None:
    class Finder(nn.Module):
        def forward(self, images: list[torch.Tensor], targets: None) -> list[dict[str, torch.Tensor]]:
            assert images[0].max() == 1.0
            return [{"boxes": torch.tensor([[10.0, 20.0, 40.0, 61.0]]), "scores": torch.ones(1)}]

    detector: Detector = TorchvisionDetector(Finder(), mined=False)
    image = torch.full((3, 60, 80), 255, dtype=torch.uint8)
    actual = detector.detect([image], [2.0], torch.zeros(0, 4), (30, 40))
    assert actual["boxes"].tolist() == [[5, 10, 20, 30]]


@pytest.mark.parametrize("fixed", [None, (32, 48)])
def test_mined_boxes_are_in_pixels_of_the_image_of_the_network(fixed: tuple[int, int] | None) -> None:
    model = nn.Module()
    model.transform = GeneralizedRCNNTransform(30, 90, [0.5] * 3, [0.2] * 3, fixed_size=fixed)
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    state = torch.get_rng_state()
    resized = TorchvisionDetector(model, mined=True).network_image(image)
    assert torch.equal(torch.get_rng_state(), state)
    seen, _ = model.transform([image.float() / 255])
    assert resized.shape[1:] == seen.image_sizes[0] == (fixed[::-1] if fixed else (30, 40))
    assert resized.dtype == torch.uint8
    height, width = seen.image_sizes[0]
    assert torch.allclose(resized / 255, seen.tensors[0, :, :height, :width] * 0.2 + 0.5, atol=0.51 / 255)


@pytest.mark.parametrize("mined", [True, False])
def test_only_mining_gets_ignored_objects(mined: bool) -> None:
    class Looker(nn.Module):
        def forward(self, images: object, targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            self.seen = targets
            return {}

    looker = Looker()
    target = {
        "boxes": torch.arange(8.0).reshape(2, 4),
        "labels": torch.tensor([1, 2]),
        "ignore": torch.tensor([True, False]),
    }
    TorchvisionDetector(looker, mined)([torch.zeros(3, 8, 8, dtype=torch.uint8)], [], [target])
    assert looker.seen[0]["labels"].tolist() == ([1, 2] if mined else [2])
    assert len(looker.seen[0]["boxes"]) == (2 if mined else 1)


# ------------------------------------------------------------------------------------------------------ weights


def test_stages_are_filled_from_a_file_of_the_classification_network(tmp_path: Path) -> None:
    published = mobilenet_v2(weights=None).state_dict()
    torch.save(published, tmp_path / "mobilenet.pth")
    recipe = recipe_of(MOBILE, backbone="mobilenet_v2", weights=str(tmp_path / "mobilenet.pth"))
    detector = build_model(recipe, OHEMSampler())
    assert isinstance(detector, TorchvisionDetector)
    load_pretrained(detector, recipe)
    body = detector.model.backbone.body
    assert torch.equal(body.state_dict()["5.conv.0.0.weight"], published["features.5.conv.0.0.weight"])
    assert any(isinstance(module, FrozenBatchNorm2d) for module in body.modules())
    assert detector.model.transform.image_mean == pytest.approx([128 / 255] * 3)  # as our own MobileNetV2
    assert not next(body.parameters()).requires_grad


def test_ssdlite_of_published_weights_is_torchvisions_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = mobilenet_v3_large(weights=None).state_dict()
    torch.save(published, tmp_path / "mobilenet.pth")
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: published)
    theirs = detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=MobileNet_V3_Large_Weights.IMAGENET1K_V1, num_classes=3
    )
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("it is downloaded"))
    recipe = recipe_of(SSDLITE, weights=str(tmp_path / "mobilenet.pth"))
    detector = build_model(recipe, OHEMSampler())  # as it is made to be evaluated
    assert isinstance(detector, TorchvisionDetector)
    ours = detector.model
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert settings(ours) == settings(theirs)
    load_pretrained(detector, recipe)
    filled, expected = ours.backbone.features.state_dict(), theirs.backbone.features.state_dict()
    assert all(torch.equal(filled[name], expected[name]) for name in expected)


def test_weights_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    line = training(data, recipe=RESNET)
    sentence_part = sentence(ohem("train", tmp_path / "run", *line, "--model.weights", tmp_path / "other.pth"))
    assert "other.pth" in sentence_part
    assert "missing: conv1.weight" in sentence_part
    sentence_part = sentence(
        ohem("train", tmp_path / "ssd", *training(data, recipe=SSDLITE), "--model.weights", tmp_path / "other.pth")
    )
    assert "other.pth" in sentence_part


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (RESNET, ["--model.backbone", "vgg16"], "--model.backbone vgg16 does not fit --model.detector faster_rcnn"),
        ("small-frcn", ["--model.backbone", "mobilenet_v3_large"], "does not fit --model.detector fast_rcnn"),
        ("small-frcn", ["--sampler.name", "builtin"], "--sampler.name builtin is for torchvision's detectors"),
        ("small-frcn", ["--proposals.mode", "none"], "--proposals.mode none leaves"),
        (RESNET, ["--proposals.mode", "fast"], "add --proposals.mode none"),
        (RESNET, ["--data.scales", "320"], "--data.scales is not for --model.detector faster_rcnn"),
        (RESNET, ["--test.voting"], "--test.voting is not for"),
        (RESNET, ["--run.loss-every", "5"], "--run.loss-every is not for"),
        (SSDLITE, ["--solver.accumulate"], "batch norm"),
        (SSDLITE, ["--model.rpn-sampler", "ohem"], "--model.rpn-sampler is for a detector with a region proposal"),
        ("small-ohem", ["--model.rpn-batch-size", "8"], "which --model.detector fast_rcnn does not have"),
        (SSDLITE, ["--model.rpn-score-thresh", "0"], "or give --model.detector faster_rcnn"),
    ],
)
def test_options_that_do_not_go_with_the_detector(
    recipe: str, options: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    sentence_part = sentence(ohem("train", tmp_path / "run", *training(data, recipe=recipe), *options))
    assert message in sentence_part
    assert not (tmp_path / "run").exists()


@SMALL
def test_what_needs_the_same_rois_at_every_step(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, recipe=SSDLITE, steps=1), *SHORT).code == 0
    for line in (["eval", run, "--loss"], ["loss", run], ["bootstrap", run]):
        assert "--model.detector fast_rcnn" in sentence(ohem(*line))
    assert "--mode none" in sentence(ohem("propose", f"{data}:train", "--mode", "none"))


@SMALL
def test_arms_of_a_comparison(data: Path, tmp_path: Path) -> None:
    base = recipe_of(SSDLITE)
    base = replace_options(
        base,
        data={"train": (f"{data}:train",), "test": (f"{data}:test",), "classes": ()},
        solver={"steps": 1, "images": 2},
    )
    settings = replace(base, run=replace(base.run, accelerator="cpu"))
    with children_in_this_process():
        own, ratio = compare(tmp_path / "out", SSDLITE, settings, ["builtin", "ratio"], seeds=1, jobs=1)
    assert own.loss is None
    assert ratio.runs[0].mined["chosen"] > 0
