"""Linear layers in low precision, for a pass that only ranks: it takes a fraction of the time.

A GPU takes float8 if its tensor cores have it, else bfloat16. A CPU takes what is fastest: int8 by either of two
kernels, bfloat16, or float32, with which every RoI is ranked exactly. The weights are rounded at every step, since they
change at every step. In int8 each row of the weights and each RoI has its own scale. The feature map is rounded as a
whole before RoIs are pooled, so that pooling moves a quarter of the bytes: the maximum of rounded values is the rounded
maximum. Convolutions are not changed on a CPU, and run in bfloat16 on a GPU.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ohem.kernels.choice import fastest
from ohem.kernels.fast_linear import Forward, Makers, fast_linear, forwards, with_whole_rows

Precision = Literal["float32", "int8", "int8-packed", "float8", "bfloat16"]
LARGEST = 127
FLOAT8 = torch.float8_e4m3fn
ROWS = 64
"""Number of rows of a weight matrix that are quantised at once: they stay in the cache of the processor."""
MOST_TIME = 0.7
"""A lower precision is used if it takes at most this share of the time of float32: rescoring costs time too."""
RANKED = 1024
"""Number of RoIs of a mini-batch in the measurement, for which the weights are rounded once."""


class Rounded(NamedTuple):
    """Values x as integers: x is about `values` * `steps` + `middle`."""

    values: Tensor
    """(R, ...) int8."""
    steps: Tensor
    """(R, 1), or a scalar for all rows."""
    middle: Tensor
    """(R, 1), or a scalar for all rows."""


@contextmanager
def low_precision(head: nn.Module, features: Tensor) -> Iterator[Tensor]:
    """Makes the linear layers of `head` multiply in the precision of `suited` in this context, without gradient.

    Args:
        head: RoI network, or list of RoI networks, whose input is pooled from the feature map.
        features: (N, C, H, W) float, the feature map.

    Yields:
        The feature map to pool from: int8 on a CPU if `head` begins with a linear layer, else `features`.
    """
    precision = suited(features.device)
    if precision == "float32":
        with torch.no_grad():
            yield features
        return
    if not precision.startswith("int8"):
        layers: Makers = {nn.Linear: _float8_where_it_fits} if precision == "float8" else {}
        with torch.no_grad(), torch.autocast(features.device.type, torch.bfloat16), forwards(head, layers):
            yield features
        return
    with torch.no_grad():
        rounded = _whole(features) if _begins_linear(head) else None
        layer = PackedInt8Linear if precision == "int8-packed" else Int8Linear
        with forwards(head, {nn.Linear: lambda plain: partial(with_whole_rows, layer(plain, rounded))}):
            yield features if rounded is None else rounded.values


def suited(device: torch.device) -> Precision:
    """Returns the lowest precision in which `device` multiplies matrices fast."""
    if device.type == "cpu":
        return _fastest_on_cpu()
    # PyTorch 2.10 is the first with `scaled_mm`.
    has_float8 = hasattr(F, "scaled_mm") and torch.version.cuda and device.type == "cuda"
    if has_float8 and torch.cuda.get_device_capability(device) >= (8, 9):
        return "float8"
    return "bfloat16"


def is_exact(device: torch.device) -> bool:
    """Returns whether no low precision is faster on `device`, so that RoIs are ranked in the network's precision."""
    return suited(device) == "float32"


def _fastest_on_cpu() -> Precision:
    """Measures, once in a process and in some milliseconds, in which precision a CPU ranks fastest.

    Each has its preparation of the weights and the product with `RANKED` RoIs. Without instructions for int8, such as
    VNNI or AMX, PyTorch multiplies int8 matrices many times slower than float32; its quantised operators do not.
    """
    kernels: dict[str, Callable[[], object]] = {
        "float32": partial(_rank, fast_linear),
        "int8": partial(_rank, lambda head: forwards(head, {nn.Linear: Int8Linear})),
        "bfloat16": partial(_rank, lambda _: torch.autocast("cpu", torch.bfloat16)),
    }
    if hasattr(torch, "_make_per_channel_quantized_tensor") and torch.backends.quantized.engine != "none":
        kernels["int8-packed"] = partial(_rank, lambda head: forwards(head, {nn.Linear: PackedInt8Linear}))
    return cast(Precision, fastest("ranking in low precision", kernels, MOST_TIME))


@torch.no_grad()
def _rank(context: Callable[[nn.Module], AbstractContextManager[object]]) -> None:
    """Runs a small linear layer on `RANKED` RoIs, 128 at a time, within `context`."""
    head, x = _probe()
    with context(head):
        for _ in range(RANKED // len(x)):
            head(x)


@cache
def _probe() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(1024, 1024, dtype=torch.float32)), torch.rand(128, 1024, dtype=torch.float32)


def _whole(features: Tensor) -> Rounded:
    """Rounds the whole feature map with the same steps."""
    values, steps, middle = quantised_range(features.float().flatten()[None])
    return Rounded(values.view(features.shape), steps[0, 0], middle[0, 0])


def _begins_linear(head: nn.Module) -> bool:
    if isinstance(head, nn.ModuleList):
        return all(map(_begins_linear, head))
    layers = [layer for layer in head.children() if not isinstance(layer, nn.Flatten)]
    return isinstance(head, nn.Sequential) and bool(layers) and type(layers[0]) is nn.Linear


class Int8Linear:
    """`layer` in int8: each row of the weights has 127 steps up to its largest value, the input 255 steps in its range.

    An input of int8 has been rounded with the steps of `rounded`.
    """

    def __init__(self, layer: nn.Linear, rounded: Rounded | None = None) -> None:
        values, self.scales = quantised(layer.weight.detach().float())
        self.weight, self.bias, self.rounded = values.t(), layer.bias, rounded
        self.sums = torch._int_mm(values, values.new_ones(values.shape[1], 8))[:, 0].float()

    def __call__(self, x: Tensor) -> Tensor:
        """Computes (R, in) -> (R, out) float32."""
        if x.dtype == torch.int8 and self.rounded is not None:
            values, (_, steps, middle) = x, self.rounded
        else:
            values, steps, middle = quantised_range(x.float())
        out = torch._int_mm(values, self.weight).float().mul_(steps).addcmul_(middle, self.sums).mul_(self.scales)
        return out if self.bias is None else out.add_(self.bias)


class PackedInt8Linear:
    """`layer` in int8 by PyTorch's quantised operators, which are fast on more processors but pack the weights first.

    The input has 7 bits, since products of 8 bits overflow on processors without VNNI.
    """

    def __init__(self, layer: nn.Linear, rounded: Rounded | None = None) -> None:
        values, scales = quantised(layer.weight.detach().float())
        zeros = torch.zeros(len(values), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of PyTorch say that they will not have it for ever
            weight = torch._make_per_channel_quantized_tensor(values, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(weight, layer.bias)
        self.rounded = rounded

    def __call__(self, x: Tensor) -> Tensor:
        """Computes (R, in) -> (R, out) float32."""
        if x.dtype == torch.int8 and self.rounded is not None:
            x = self.rounded.middle + self.rounded.steps * x
        out: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self.packed, True)
        return out


class Float8Linear:
    """`layer` in float8 (e4m3): weights and input are each scaled to its range with one factor.

    The sizes of the layer must be multiples of 16.
    """

    def __init__(self, layer: nn.Linear) -> None:
        values, self.scale = as_float8(layer.weight.detach())
        self.weight, self.bias = values.t(), None if layer.bias is None else layer.bias.detach().bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """Computes (R, in) -> (R, out) bfloat16."""
        values, scale = as_float8(x)
        whole, out = F.ScalingType.TensorWise, torch.bfloat16
        return F.scaled_mm(values, self.weight, scale, whole, self.scale, whole, bias=self.bias, output_dtype=out)


def _float8_where_it_fits(layer: nn.Linear) -> Forward:
    fits = layer.in_features % 16 == layer.out_features % 16 == 0
    return Float8Linear(layer) if fits else partial(nn.Linear.forward, layer)


def as_float8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Converts `values` to float8 (e4m3) of the same shape and a float32 scalar factor."""
    values = values.float()
    largest = torch.linalg.vector_norm(values, torch.inf) if values.numel() else values.new_zeros(())
    scale = largest.clamp(min=1e-30) / torch.finfo(FLOAT8).max
    return (values / scale).to(FLOAT8), scale


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Converts (R, C) float32 to (R, C) int8 and a float32 factor (R,) for each row."""
    values, scales = torch.empty(rows.shape, dtype=torch.int8), rows.new_empty(len(rows), 1)
    for start in range(0, len(rows), ROWS):
        here = slice(start, start + ROWS)
        largest = torch.maximum(rows[here].amax(dim=1, keepdim=True), -rows[here].amin(dim=1, keepdim=True))
        scales[here] = largest.clamp_(min=1e-30) / LARGEST
        values[here] = (rows[here] * (1 / scales[here])).round_()
    return values, scales[:, 0]


def quantised_range(rows: Tensor) -> Rounded:
    """Rounds (R, C) float32 to the range of each row: outputs of ReLU have no sign, and get all 8 bits."""
    lowest, highest = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    steps = (highest - lowest).clamp_(min=1e-30) / 255
    middle = lowest + 128 * steps
    return Rounded(((rows - middle) / steps).round_().clamp_(-128, 127).to(torch.int8), steps, middle)
