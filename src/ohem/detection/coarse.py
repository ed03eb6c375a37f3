"""Linear layers in few bits: a pass that only ranks needs no more, and takes a fraction of the time.

On a CPU in int8, on a GPU in float8 where its tensor cores have that, and otherwise in bfloat16. The weights change at
every step, so they are rounded at every step. In int8 that is one row of the output at a time, and what they are
multiplied with one RoI at a time; the feature map is rounded as a whole before RoIs are pooled: of rounded values the
highest is the highest value rounded, so that pooling moves a quarter of the bytes. Convolutions stay as they are on a
CPU, and are in bfloat16 on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType

from ohem.layers import Forward, Makers, forwards

Precision = Literal["int8", "float8", "bfloat16"]
LARGEST = 127
FLOAT8 = torch.float8_e4m3fn
ROWS = 64
"""Rows of a weight matrix that are quantised at once: they stay in the cache between the passes over them."""


class Rounded(NamedTuple):
    """Values x as integers: x is about `values` * `steps` + `middle`."""

    values: Tensor
    """(R, ...) int8."""
    steps: Tensor
    """(R, 1), or a scalar where all rows have the same."""
    middle: Tensor
    """Alike."""


@contextmanager
def coarse(head: nn.Module, features: Tensor) -> Iterator[Tensor]:
    """Within it the linear layers of `head` multiply in the precision that `suited` names; no gradient.

    Args:
        head: given what is pooled from the feature map.
        features: (N, C, H, W) float, the map.

    Yields:
        The map to pool from in place of `features`: int8 on a CPU where `head` begins with a linear layer.
    """
    precision = suited(features.device)
    if precision != "int8":
        layers: Makers = {nn.Linear: _float8_where_it_fits} if precision == "float8" else {}
        with torch.no_grad(), torch.autocast(features.device.type, torch.bfloat16), forwards(head, layers):
            yield features
        return
    with torch.no_grad():
        rounded = _whole(features) if _begins_linear(head) else None
        with forwards(head, {nn.Linear: partial(Int8Linear, rounded=rounded)}):
            yield features if rounded is None else rounded.values


def suited(device: torch.device) -> Precision:
    """The fewest bits that matrices on `device` are multiplied fast in."""
    if device.type == "cpu":
        return "int8"
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) >= (8, 9):
        return "float8"
    return "bfloat16"


def _whole(features: Tensor) -> Rounded:
    """All of the map with the same steps."""
    values, steps, middle = quantised_range(features.float().flatten()[None])
    return Rounded(values.view(features.shape), steps[0, 0], middle[0, 0])


def _begins_linear(head: nn.Module) -> bool:
    layers = [layer for layer in head.children() if not isinstance(layer, nn.Flatten)]
    return isinstance(head, nn.Sequential) and bool(layers) and type(layers[0]) is nn.Linear


class Int8Linear:
    """What `layer` computes, its weights rounded to 127 steps of their rows' largest, its input to 255 of its range.

    An input of int8 is rounded already, with the steps of `rounded`.
    """

    def __init__(self, layer: nn.Linear, rounded: Rounded | None = None) -> None:
        values, self.scales = quantised(layer.weight.detach().float())
        self.weight, self.bias, self.rounded = values.t(), layer.bias, rounded
        self.sums = torch._int_mm(values, values.new_ones(values.shape[1], 8))[:, 0].float()

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out) float32."""
        if x.dtype == torch.int8 and self.rounded is not None:
            values, (_, steps, middle) = x, self.rounded
        else:
            values, steps, middle = quantised_range(x.float())
        out = torch._int_mm(values, self.weight).float().mul_(steps).addcmul_(middle, self.sums).mul_(self.scales)
        return out if self.bias is None else out.add_(self.bias)


class Float8Linear:
    """What `layer` computes, its weights and its input in float8 (e4m3), both scaled to the range of that as a whole.

    The sizes of the layer must be multiples of 16.
    """

    def __init__(self, layer: nn.Linear) -> None:
        values, self.scale = as_float8(layer.weight.detach())
        self.weight, self.bias = values.t(), None if layer.bias is None else layer.bias.detach().bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out) bfloat16."""
        values, scale = as_float8(x)
        whole, out = ScalingType.TensorWise, torch.bfloat16
        return F.scaled_mm(values, self.weight, scale, whole, self.scale, whole, bias=self.bias, output_dtype=out)


def _float8_where_it_fits(layer: nn.Linear) -> Forward:
    fits = layer.in_features % 16 == layer.out_features % 16 == 0
    return Float8Linear(layer) if fits else partial(nn.Linear.forward, layer)


def as_float8(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` as float8 (e4m3) of the same shape times a float32 scalar."""
    values = values.float()
    largest = torch.linalg.vector_norm(values, torch.inf) if values.numel() else values.new_zeros(())
    scale = largest.clamp(min=1e-30) / torch.finfo(FLOAT8).max
    return (values / scale).to(FLOAT8), scale


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) float32 as (R, C) int8 times (R, 1) float32; the latter as (R,)."""
    values, scales = torch.empty(rows.shape, dtype=torch.int8), rows.new_empty(len(rows), 1)
    for start in range(0, len(rows), ROWS):
        here = slice(start, start + ROWS)
        largest = torch.maximum(rows[here].amax(dim=1, keepdim=True), -rows[here].amin(dim=1, keepdim=True))
        scales[here] = largest.clamp_(min=1e-30) / LARGEST
        values[here] = (rows[here] * (1 / scales[here])).round_()
    return values, scales[:, 0]


def quantised_range(rows: Tensor) -> Rounded:
    """(R, C) float32: what ReLU leaves has no sign, and gets all 8 bits."""
    lowest, highest = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    steps = (highest - lowest).clamp_(min=1e-30) / 255
    middle = lowest + 128 * steps
    return Rounded(((rows - middle) / steps).round_().clamp_(-128, 127).to(torch.int8), steps, middle)
