"""Small Caffe models for tests, as protocol-buffer messages: nothing else here needs a library for them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Layer = tuple[str, str, Sequence[NDArray[Any]]]  # name, type, blobs


def caffemodel(layers: Iterable[Layer]) -> bytes:
    """Returns a NetParameter with `layer` messages (field 100), which Caffe has written since 2014."""
    return b"".join(
        _field(100, _field(1, name.encode()) + _field(2, kind.encode()) + b"".join(_field(7, _blob(b)) for b in blobs))
        for name, kind, blobs in layers
    )


def old_caffemodel(layers: Iterable[Layer]) -> bytes:
    """Returns a model as in older files, such as the published VGG: `layers` (field 2), four-dimensional blobs."""
    kinds = {"Convolution": 4, "InnerProduct": 14}
    return b"".join(
        _field(
            2,
            _field(4, name.encode()) + _number(5, kinds[kind]) + b"".join(_field(6, _old_blob(b)) for b in blobs),
        )
        for name, kind, blobs in layers
    )


def prototxt(layers: Iterable[Mapping[str, Any]], height: int, width: int) -> bytes:
    """Returns the conv, ReLU, LRN and pooling layers of `reference/architectures.json`, for one image of 3 channels."""
    shape = "".join(f"dim: {n} " for n in (1, 3, height, width))
    text = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {shape}}} }} }}']
    groups = {"Convolution": "convolution_param", "Pooling": "pooling_param", "LRN": "lrn_param"}
    fields = ("num_output", "pad", "kernel_size", "stride", "pool", "local_size", "alpha", "beta", "k")
    for layer in layers:
        head = f'name: "{layer["name"]}" type: "{layer["type"]}" bottom: "{layer["bottom"]}" top: "{layer["top"]}"'
        values = " ".join(f"{key}: {layer[key]}" for key in fields if key in layer)
        group = groups.get(layer["type"])
        text.append(f"layer {{ {head} {f'{group} {{ {values} }}' if group else ''} }}")
    return "\n".join(text).encode()


def _varint(n: int) -> bytes:
    rest, low = n >> 7, n & 127
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _blob(values: NDArray[Any]) -> bytes:
    return _field(7, _field(1, b"".join(map(_varint, values.shape)))) + _field(5, values.astype("<f4").tobytes())


def _old_blob(values: NDArray[Any]) -> bytes:
    shape = (1,) * (4 - values.ndim) + values.shape
    sizes = b"".join(_number(i, n) for i, n in enumerate(shape, start=1))
    return sizes + _field(5, np.asarray(values, "<f4").tobytes())
