"""torchvision's one-stage detectors with mining are used as before, and models that `with_ohem` refuses."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torchvision.models import detection
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.ssd import SSD

from ohem import AllSampler, OHEMSampler, RandomSampler, RatioSampler, with_ohem
from tests.helpers.contracts import EVERY_SAMPLER, TrainedDetector, check_detector
from tests.helpers.one_stage import BATCHES, MAKE, Backbone, NoneSampler, batch, make, make_ssd, step

# Few points of FCOS have an IoU of a half, which `RandomSampler` requires by default.
CONTRACT: dict[str, Any] = {**EVERY_SAMPLER, "default": None, "random": RandomSampler(16, fg_iou=0.0)}
WITHOUT_MINING: dict[str, dict[str, TrainedDetector]] = {kind: {} for kind in MAKE}
KINDS = pytest.mark.parametrize("kind", MAKE)


@KINDS
@pytest.mark.parametrize("sampler", CONTRACT.values(), ids=CONTRACT)
def test_contract_of_a_detector(kind: str, sampler: Any) -> None:
    batches = {name: batch(name) for name in BATCHES}
    check_detector(partial(make, kind, score_thresh=0.0), sampler, batches, WITHOUT_MINING[kind])


@pytest.mark.parametrize(
    "build",
    [
        detection.retinanet_resnet50_fpn,
        detection.retinanet_resnet50_fpn_v2,
        detection.fcos_resnet50_fpn,
        detection.ssd300_vgg16,
    ],
    ids=lambda build: build.__name__,
)
def test_every_builder_of_torchvision(build: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):  # allocates no weights
        model = build(weights=None, weights_backbone=None)
    names = list(model.state_dict())
    assert with_ohem(model).mining.statistics() == {}
    assert list(model.state_dict()) == names


@KINDS
def test_state_and_detections_do_not_change(kind: str) -> None:
    """Checkpoints can be loaded with and without mining, and the detections are the same."""
    own, mined = make(kind, score_thresh=0.0), with_ohem(make(kind, score_thresh=0.0))
    assert list(own.state_dict()) == list(mined.state_dict())
    step(mined, "two images")
    own.load_state_dict(mined.state_dict())
    mined.load_state_dict(own.state_dict())
    images, _ = batch("two images")
    with torch.no_grad():
        expected, detections = own.eval()(images), mined.eval()(images)
    assert len(expected[0]["boxes"]) > 0
    torch.testing.assert_close(detections, expected, rtol=0, atol=0)


@KINDS
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_mines_independently(kind: str, duplicate: Callable[[Any], Any]) -> None:
    model = with_ohem(make(kind), OHEMSampler(8, nms_iou=None))
    step(model, "two images")
    twin = duplicate(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    expected = step(model, "two images")
    torch.testing.assert_close(step(duplicate(model), "two images"), expected)
    step(twin, "many objects")
    assert twin.mining is not model.mining
    torch.testing.assert_close(sum(expected.values()), sum(step(model, "two images").values()))
    assert len(twin.mining.rois) == len(model.mining.rois)
    assert twin.mining.statistics()["loss_all"] != model.mining.statistics()["loss_all"]


@KINDS
def test_second_call_replaces_the_sampler(kind: str) -> None:
    model = with_ohem(with_ohem(make(kind), AllSampler()), OHEMSampler(3, nms_iou=None))
    step(model, "two images")
    assert model.mining.statistics()["chosen"] == 6


def test_default_samplers() -> None:
    """They are hard background at the ratio of the model, or the hardest anchors per image without NMS."""
    assert with_ohem(make("ssd", positive_fraction=0.5)).mining.sampler == RatioSampler(1.0)
    for kind in ("retinanet", "fcos"):
        assert with_ohem(make(kind)).mining.sampler == OHEMSampler(256, nms_iou=None)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@KINDS
@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_gets_every_gradient(kind: str) -> None:
    """It raises in the step after one in which a parameter has no gradient."""
    parallel = nn.parallel.DistributedDataParallel(with_ohem(make(kind), NoneSampler()))
    for name in ("no object", "two images", "one object"):
        step(parallel, name)


def test_unknown_model_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"with_ohem knows .*FCOS.*RetinaNet.*SSD, and not Linear: .*register\(Linear\)"
    ):
        with_ohem(nn.Linear(2, 2), AllSampler())


def test_scripted_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="give it the one that was scripted"):
        with_ohem(scripted, AllSampler())


class ReplacedLoss(SSD):
    def compute_loss(self, *args: Any) -> dict[str, Tensor]:
        return {}


class ReplacedClassification(RetinaNetClassificationHead):
    def compute_loss(self, *args: Any) -> Tensor:
        return torch.zeros(())


class Derived(SSD):
    pass


def test_model_with_another_loss_is_refused() -> None:
    """Mining would silently replace the loss of the model."""
    model = make_ssd()
    model.__class__ = ReplacedLoss
    with pytest.raises(TypeError, match="ReplacedLoss, whose compute_loss is not that of torchvision's SSD"):
        with_ohem(model)
    retinanet = make("retinanet")
    retinanet.head.classification_head = ReplacedClassification(Backbone().out_channels, 6, 4)
    with pytest.raises(TypeError, match="ReplacedClassification"):
        with_ohem(retinanet)


def test_derived_model_is_mined() -> None:
    model = make_ssd()
    model.__class__ = Derived
    step(with_ohem(model.train()), "two images")
    assert type(model) is Derived
    assert model.mining.statistics()["chosen"] > 0


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="no option 'los' for SSD"):
        with_ohem(make("ssd"), los="builtin")
    with pytest.raises(ValueError, match='"builtin" or "cross_entropy", not \'focal\''):
        with_ohem(make("retinanet"), loss="focal")
