"""Files of weights that Caffe wrote, read by OpenCV, which is needed for nothing else here."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ohem.errors import InputError


def caffe_tensors(path: Path, layers: Sequence[str]) -> dict[str, Tensor]:
    """The weights and biases of a .caffemodel's named layers; those that it does not have are left out.

    InputError: it cannot be read, or OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(f"{path}: reading a .caffemodel needs OpenCV; pip install 'ohem[proposals]'") from error
    try:
        net = cv2.dnn.readNetFromCaffe(_prototxt(layers), np.fromfile(path, np.uint8))
    except (cv2.error, OSError) as error:
        raise InputError(f"{path}: is not a .caffemodel, or is cut short; download it again") from error
    tensors = {}
    for layer, (i, kind) in ((layer, p) for layer in layers for p in enumerate(("weight", "bias"))):
        try:
            tensors[f"{layer}.{kind}"] = torch.from_numpy(net.getParam(layer, i).copy())
        except cv2.error:  # a layer without these
            continue
    return tensors


def _prototxt(layers: Iterable[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The least description that makes OpenCV keep the tensors of these layers, of any shape: it is never run.

    All are declared convolutions, fully connected ones as well, since OpenCV hands out a convolution's as they are.
    """
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    conv = 'layer {{ name: "{0}" type: "Convolution" bottom: "data" top: "{0}" convolution_param {{ {1} }} }}'
    lines = chain([data], (conv.format(layer, "num_output: 1 kernel_size: 1") for layer in layers))
    return np.frombuffer("\n".join(lines).encode(), np.uint8)
