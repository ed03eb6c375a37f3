"""Weights of Caffe models: every layer gets its tensors and the normalisation of the model."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ohem.detection.backbones import BACKBONES, with_pyramid
from ohem.detection.backbones.base import Pretrained
from ohem.detection.weights import load_weights
from ohem.errors import InputError
from tests.detection.toy_backbone import CAFFE, TOY_CAFFE, caffe_layers, refused, toy
from tests.helpers.caffe_files import caffemodel, old_caffemodel


@pytest.mark.parametrize("write", [caffemodel, old_caffemodel])
def test_a_caffemodel(write: Any, tmp_path: Path) -> None:
    source = toy(seed=4)
    extra = ("fc8", "InnerProduct", [torch.zeros(3, 7).numpy(), torch.zeros(3).numpy()])
    (tmp_path / "w.caffemodel").write_bytes(write([*caffe_layers(source), extra]))
    backbone = toy(TOY_CAFFE)
    load_weights(backbone, tmp_path / "w.caffemodel")
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, source.get_parameter(name)), name
    assert backbone.normalisation == CAFFE


def test_a_caffemodel_for_the_features_alone(tmp_path: Path) -> None:
    source = toy(seed=4)
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(caffe_layers(source)[:2]))
    backbone = toy(Pretrained(names={"features.": "features."}, caffe=("conv1", "conv2"), caffe_input=CAFFE))
    head = backbone.roi_head[1].weight.clone()
    load_weights(backbone, tmp_path / "w.caffemodel")
    assert torch.equal(backbone.features[2].weight, source.features[2].weight)
    assert torch.equal(backbone.roi_head[1].weight, head)


def test_a_caffemodel_fills_all_but_the_first_layer_after_a_pyramid(tmp_path: Path) -> None:
    source = toy(seed=4)
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(caffe_layers(source)))
    backbone = with_pyramid(toy(TOY_CAFFE))
    first = backbone.roi_head[1].weight.clone()
    load_weights(backbone, tmp_path / "w.caffemodel")
    for name in ("features.0.weight", "features.2.bias", "roi_head.4.weight"):
        assert torch.equal(backbone.get_parameter(name), source.get_parameter(name)), name
    assert torch.equal(backbone.roi_head[1].weight, first)


def test_a_caffemodel_that_does_not_fit(tmp_path: Path) -> None:
    layers = caffe_layers(toy())
    layers[1] = ("conv2", "Convolution", [torch.zeros(6, 4, 5, 5).numpy(), layers[1][2][1]])
    layers[2] = ("fc6", "InnerProduct", [torch.zeros(5, 54).numpy(), layers[2][2][1]])
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(layers[:3]))
    refused(
        toy(TOY_CAFFE),
        tmp_path / "w.caffemodel",
        "2 missing: fc7.weight, fc7.bias",
        "2 of another shape: conv2.weight (6, 4, 5, 5) instead of (6, 4, 3, 3), fc6.weight (5, 54) instead of (5, 24)",
    )


def test_a_caffemodel_cut_short(tmp_path: Path) -> None:
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(caffe_layers(toy()))[:-100])
    refused(toy(TOY_CAFFE), tmp_path / "w.caffemodel", "cut short")


def test_a_caffemodel_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.caffemodel").write_bytes(caffemodel(caffe_layers(toy())))
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused(toy(TOY_CAFFE), tmp_path / "w.caffemodel", "ohem[train]")


@pytest.mark.parametrize(("name", "count"), [("vgg16", 15), ("vgg_cnn_m_1024", 7), ("squeezenet1_0", 25)])
def test_every_layer_has_a_caffe_name(name: str, count: int, tmp_path: Path) -> None:
    """Reads an empty model: all that the network needs is missing, by Caffe's names."""
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    (tmp_path / "w.caffemodel").write_bytes(b"")
    first = "conv1_1.weight" if name == "vgg16" else "conv1.weight"
    with pytest.raises(InputError, match=rf"of {2 * count} tensors {2 * count} missing: {first}, "):
        load_weights(backbone, tmp_path / "w.caffemodel")
