"""Linear layers in 8-bit integers: a pass that only ranks needs no more, and takes a fraction of the time.

The weights change at every step, so they are quantised at every step, one row of the output at a time; what they are
multiplied with as it comes, one RoI at a time. The feature map is quantised as a whole before RoIs are pooled: of
rounded values the highest is the highest value rounded, so that pooling moves a quarter of the bytes. Convolutions stay
as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ohem.layers import forwards

LARGEST = 127
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
    """Within it the linear layers of `head` multiply in int8 on a CPU, in bfloat16 on other devices; no gradient.

    Args:
        head: given what is pooled from the feature map.
        features: (N, C, H, W) float, the map.

    Yields:
        The map to pool from in place of `features`: int8 where `head` begins with a linear layer.
    """
    if features.device.type != "cpu":
        with torch.no_grad(), torch.autocast(features.device.type, torch.bfloat16):
            yield features
        return
    with torch.no_grad():
        rounded = _whole(features) if _begins_linear(head) else None
        with forwards(head, {nn.Linear: partial(Int8Linear, rounded=rounded)}):
            yield features if rounded is None else rounded.values


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
