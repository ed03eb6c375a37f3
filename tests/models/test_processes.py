"""torchvision's detectors, small ones with random weights, are trained in two real processes as in one, in float64."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ohem.config.schema import Recipe
from ohem.models import torchvision
from ohem.models.shared_batch import share_batch_norm
from ohem.read_only import read_only
from tests.helpers.command_line import in_processes, ohem
from tests.helpers.one_stage import make_ssd
from tests.helpers.tiny_rcnn import faster_rcnn
from tests.helpers.toy_data import make_uneven_toy, training
from tests.training.test_processes import assert_same

RCNN = "fasterrcnn-mobilenet-v3-large-320-fpn"
SSD = "ssdlite320-mobilenet-v3-large"
FEW = ["--sampler.batch-size", 8]
MOST = ["--sampler.batch-size", 55, "--model.rpn-batch-size", 470]
"""More than some images have, so that processes train on different numbers."""
RATIO = ["--sampler.name", "ratio"]
VARIANTS: dict[str, list[object]] = {
    "drawn": [RCNN, *MOST],
    "mined": [f"{RCNN}-ohem", *FEW],
    "mined, joint": [f"{RCNN}-ohem", *FEW, "--sampler.no-per-image"],
    "anchors": [RCNN, *MOST, "--model.rpn-sampler", "ohem"],
    "anchors by loss": [f"{RCNN}-ohem", "--model.rpn-sampler", "proportional", *MOST, "--sampler.name", "random"],
    "ratio": [f"{RCNN}-ohem", "--model.rpn-sampler", "ratio", *RATIO],
    "accumulated": [f"{RCNN}-ohem", *FEW, "--solver.accumulate"],
    "ssd": [SSD],
    "ssd, mined": [f"{SSD}-ohem", *FEW],
    "ssd, ratio": [f"{SSD}-ohem", *RATIO],
}


def small_rcnn(recipe: Recipe) -> nn.Module:
    """Returns a Faster R-CNN with batch norm."""
    model = faster_rcnn(
        rpn_batch_size_per_image=recipe.model.rpn_batch_size or 16,
        box_batch_size_per_image=recipe.sampler.batch_size or 16,
    )
    model.backbone.low = nn.Sequential(model.backbone.low, nn.BatchNorm2d(model.backbone.out_channels))
    model.transform.size_divisible = 8  # images of other widths are then padded to other sizes
    return model


def small_ssd(recipe: Recipe) -> nn.Module:
    """Returns an SSD with batch norm."""
    return make_ssd()


def make_small_models() -> None:
    torchvision._faster_rcnn, torchvision._ssdlite = small_rcnn, small_ssd


def lines(data: Path, folder: Path) -> list[list[object]]:
    common = ["--model.weights", "none", "--solver.warmup", 0, "--solver.lr", 0.01]
    # With this seed, one process has the only wide image of the second step.
    common += ["--solver.seed", 1, "--run.precision", "64-true", "--run.log-every", 1]
    return [
        ["train", folder / name, *training(data, steps=2, images=4, test=None, recipe=recipe), *common, *more]
        for name, (recipe, *more) in VARIANTS.items()
    ]


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_uneven_toy(tmp_path / "toy")
    empty = data / "Annotations" / "b.xml"
    empty.write_text(empty.read_text().split("<object>")[0] + "</annotation>")
    for name in ("_faster_rcnn", "_ssdlite"):
        monkeypatch.setattr(torchvision, name, getattr(torchvision, name))
    make_small_models()
    for line in lines(data, tmp_path / "one"):
        result = ohem(*line)
        assert result.code == 0, result
    (tmp_path / "two").mkdir()
    in_processes(2, lines(data, tmp_path / "two"), tmp_path, first=make_small_models)
    for name in VARIANTS:
        # torchvision's log loss of anchors is float32.
        assert_same(tmp_path / "two" / name, tmp_path / "one" / name, rtol=1e-7)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_batch_norm_waits_for_no_process_where_nothing_is_trained(one_by_one: bool) -> None:
    """There is no other process here: to wait for one would fail."""
    images = torch.rand(2, 3, 4, 4)
    own = nn.BatchNorm2d(3)
    shared = copy.deepcopy(own)
    share_batch_norm(nn.Sequential(shared), one_by_one=one_by_one)
    expected = own(images)
    with read_only(shared):
        assert torch.equal(shared(images), expected)
    assert torch.equal(shared.eval()(images), nn.BatchNorm2d(3).eval()(images))
