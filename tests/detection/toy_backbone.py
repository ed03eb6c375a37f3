"""A small backbone with published weights, for the tests of reading weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ohem.detection.backbones import Backbone, Normalisation
from ohem.detection.backbones.base import Pretrained, fc_head
from ohem.detection.weights import load_weights
from ohem.errors import InputError

OWN = Normalisation("rgb", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
CAFFE = Normalisation("bgr", (100.0, 110.0, 120.0))
TOY_CAFFE = Pretrained(caffe=("conv1", "conv2", "fc6", "fc7"), caffe_input=CAFFE)


def toy(pretrained: Pretrained | None = None, seed: int = 0) -> Backbone:
    """Returns a backbone with two convolutions and a head of two linear layers."""
    torch.manual_seed(seed)
    return Backbone(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1)),
        fc_head(6 * 2 * 2, 5, 7, dropout=0.0),
        stride=4,
        channels=6,
        pool_size=2,
        dim=7,
        normalisation=OWN,
        pretrained=pretrained or Pretrained(names={"features.": "features.", "roi_head.1.": "classifier.0."}),
    )


def published() -> dict[str, Tensor]:
    """Returns a state dict for `toy` in torchvision's layout: float16, with the first linear layer and a classifier."""
    state = {k: v for k, v in toy(seed=1).state_dict().items() if k.startswith(("features.", "roi_head.1."))}
    renamed = {k.replace("roi_head.1.", "classifier.0."): v.half() for k, v in state.items()}
    return renamed | {"classifier.6.weight": torch.zeros(1000, 5)}


def snapshot(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def refused(backbone: Backbone, source: str | Path, *arguments: str) -> None:
    """Checks that the sentence has these words and the source's name, and that the backbone did not change."""
    before = snapshot(backbone)
    with pytest.raises(InputError) as caught:
        load_weights(backbone, source)
    for word in (str(source), *arguments):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def caffe_layers(backbone: Backbone) -> list[Any]:
    modules = [m for m in backbone.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [
        (
            name,
            "Convolution" if name.startswith("conv") else "InnerProduct",
            [p.detach().numpy() for p in m.parameters()],
        )
        for name, m in zip(TOY_CAFFE.caffe, modules, strict=True)
    ]
