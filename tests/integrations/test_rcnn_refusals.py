"""Models, samplers and versions of torchvision that `with_ohem` refuses, for torchvision's R-CNN detectors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads

from ohem import OHEMSampler, with_ohem
from ohem.integrations.rcnn import OHEMRoIHeads
from tests.helpers.tiny_rcnn import BATCHES, faster_rcnn, step


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_scripting_is_refused_before_and_after() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    with pytest.raises(TypeError, match="load its state_dict into one without"):
        torch.jit.script(model.eval())
    assert type(model.roi_heads) is OHEMRoIHeads
    with pytest.raises(TypeError, match="scripted"):
        with_ohem(torch.jit.script(faster_rcnn().eval()), OHEMSampler(8))


@pytest.mark.filterwarnings("ignore:`torch.nn.DataParallel:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrapped_models_are_refused_with_the_fix(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(TypeError, match="FasterRCNN before it is wrapped"):
        with_ohem(wrap(faster_rcnn()), OHEMSampler(8))


@pytest.mark.parametrize("sampler", [OHEMSampler, 128, "ohem"])
def test_invalid_sampler_is_refused_at_once(sampler: Any) -> None:
    with pytest.raises(TypeError, match=r"give OHEMSampler\(\)"):
        with_ohem(faster_rcnn(), sampler)


@pytest.mark.parametrize("chosen", [[0, 1], torch.ones(3, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)])
def test_sampler_must_return_indices(chosen: Any) -> None:
    with pytest.raises(TypeError, match="returns the indices of RoIs, an int64 vector"):
        step(with_ohem(faster_rcnn(), lambda rois, losses: chosen), BATCHES["usual"])


def test_unknown_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"FasterRCNN.*not Linear: .*with_ohem.register\(Linear\)"):
        with_ohem(nn.Linear(1, 1), OHEMSampler(8))


class Cascade(RoIHeads):  # type: ignore[misc]
    """RoI heads that may have other losses."""


def test_other_roi_heads_are_refused() -> None:
    model = faster_rcnn()
    model.roi_heads.__class__ = Cascade
    with pytest.raises(TypeError, match="RoIHeads, and not Cascade"):
        with_ohem(model, OHEMSampler(8))
    assert type(model.roi_heads) is Cascade


def test_unknown_version_of_torchvision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def subsample(self: Any, labels: Any, boxes: Any) -> None: ...

    monkeypatch.setattr(RoIHeads, "subsample", subsample)
    model = faster_rcnn()
    with pytest.raises(TypeError, match=r"RoIHeads.subsample of torchvision \d"):
        with_ohem(model, OHEMSampler(8))
    assert type(model.roi_heads) is RoIHeads
