"""Linear layers in 8-bit integers: a pass that only ranks needs no more, and takes a fraction of the time.

The weights change at every step, so they are quantised at every step, one row of the output at a time; activations as
they come, one RoI at a time. Convolutions stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ohem.linear import forwards
from ohem.rois import IGNORE, RoIs

LARGEST = 127
ROWS = 16
"""Rows of a weight matrix that are quantised at once: they stay in the cache between the passes over them."""


@contextmanager
def coarse(module: nn.Module) -> Iterator[None]:
    """Within it the linear layers of `module` multiply in int8 on a CPU, in bfloat16 on other devices; no gradient."""
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear]
    device = layers[0].weight.device.type if layers else "cpu"
    if device != "cpu":
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            yield
        return
    with torch.no_grad(), forwards(module, Int8Linear):
        yield


def hardest_of_each_image(losses: Tensor, rois: RoIs, count: int) -> Tensor:
    """Indices of the `count` RoIs of each image, or as many as there are, with the highest `losses` (R,), NaN first."""
    usable = losses.masked_fill(rois.labels == IGNORE, -torch.inf)
    found = []
    for image in range(rois.num_images):
        here = (rois.images == image).nonzero()[:, 0]
        found.append(here[usable[here].topk(min(count, len(here))).indices])
    return torch.cat(found)


class Int8Linear:
    """What `layer` computes, its weights rounded to 127 steps of their rows' largest, its input to 255 of its range."""

    def __init__(self, layer: nn.Linear) -> None:
        weight = layer.weight.detach().float()
        parts = [quantised(rows) for rows in torch.split(weight, ROWS)]
        values, scales = (torch.cat(column) for column in zip(*parts, strict=True))
        self.weight, self.scales, self.bias = values.t(), scales[:, 0], layer.bias
        self.sums = values.sum(dim=1, dtype=torch.int32).float()

    def __call__(self, x: Tensor) -> Tensor:
        """(R, in) -> (R, out)."""
        values, steps, middle = quantised_range(x.float())
        out = torch._int_mm(values, self.weight).float().mul_(steps).addcmul_(middle, self.sums).mul_(self.scales)
        return (out if self.bias is None else out.add_(self.bias)).to(x.dtype)


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) float32 as (R, C) int8 times (R, 1) float32."""
    scales = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_(min=1e-30) / LARGEST
    return (rows / scales).round_().to(torch.int8), scales


def quantised_range(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R, C) float32 as (R, C) int8 times (R, 1) plus (R, 1): what ReLU leaves has no sign, and gets all 8 bits."""
    lowest, highest = rows.aminmax(dim=1, keepdim=True)
    steps = (highest - lowest).clamp_(min=1e-30) / 255
    middle = lowest + 128 * steps
    return ((rows - middle) / steps).round_().clamp_(-128, 127).to(torch.int8), steps, middle
