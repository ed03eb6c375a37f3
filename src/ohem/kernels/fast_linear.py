"""Faster linear layers and dropout on a CPU, for the time of a pass.

Linear: PyTorch for x86 multiplies float32 by MKL. The oneDNN in the same PyTorch multiplies in the same precision: on
AMD processors with AVX-512, fc6 of VGG16 takes a third to half of the time, but with AVX2 alone it can take longer.
Therefore both are measured once.

Dropout: PyTorch draws a random number for each value; here a random number serves eight values.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ohem.kernels.choice import fastest

Forward = Callable[[Tensor], Tensor]
"""A function that replaces the `forward` of a layer."""
Makers = Mapping[type[nn.Module], Callable[..., Forward]]
"""Type of a layer -> what makes such a function of the layer."""
BYTE = 256
LARGE = 2**20
"""Number of weights of a layer from which the faster kernel is measured. For smaller layers it matters little."""
ROWS = 64
"""oneDNN makes a kernel for each number of rows that it multiplies, and keeps a thousand of them, half a megabyte each.
The number of RoIs differs from step to step, so rows are added up to a multiple of this."""
GAIN = 0.85
"""oneDNN multiplies large layers if it takes at most this share of the time of MKL."""


@contextmanager
def fast_linear(module: nn.Module) -> Iterator[None]:
    """Makes the linear layers of `module` multiply by oneDNN in this context, where that can be faster."""
    with forwards(module, {nn.Linear: _Linear} if _mkl() else {}, _compiled(module)):
        yield


@contextmanager
def fast_layers(module: nn.Module) -> Iterator[None]:
    """Does as `fast_linear`, and makes dropout on a CPU faster, with other random numbers of the same distribution."""
    with fast_linear(module), forwards(module, {nn.Dropout: _Dropout}, _compiled(module)):
        yield


@contextmanager
def forwards(module: nn.Module, makers: Makers, spared: Collection[nn.Module] = ()) -> Iterator[None]:
    """Replaces the `forward` of layers in this context by what `makers[type]` makes of them.

    A layer with a forward of its own, as some tools give it, keeps that, unless it is one of this file. The layers in
    `spared` stay as they are.
    """
    layers = [layer for layer in module.modules() if type(layer) in makers and layer not in spared]
    before = {layer: vars(layer).get("forward") for layer in layers}
    replaced = [layer for layer, own in before.items() if own is None or isinstance(own, _Fast)]
    try:
        for layer in replaced:
            vars(layer)["forward"] = makers[type(layer)](layer)
        yield
    finally:
        for layer in replaced:
            vars(layer)["forward"] = before[layer]
            if before[layer] is None:
                del vars(layer)["forward"]


def _compiled(module: nn.Module) -> set[nn.Module]:
    """Returns the compiled parts of `module`: `torch.compile` would compile them again for each new `forward`."""
    whole = [m for m in module.modules() if "_orig_mod" in m._modules or getattr(m, "_compiled_call_impl", None)]
    return {layer for compiled in whole for layer in compiled.modules()}


def _mkl() -> bool:
    available: bool = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available


class _Fast:
    def __init__(self, layer: Any) -> None:
        self.layer = layer


class _Linear(_Fast):
    def __call__(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if _suits(x, weight) and (weight.numel() < LARGE or onednn_is_faster(torch.is_grad_enabled())):
            return with_whole_rows(partial(_by_onednn, self.layer), x)
        forward = partial(nn.Linear.forward, self.layer)
        return with_whole_rows(forward, x) if _is_rounded_by_onednn(x) else forward(x)


def with_whole_rows(forward: Forward, x: Tensor) -> Tensor:
    """Returns `forward(x)` of `x` (R, in), which `forward` gets with rows of zeros up to a multiple of `ROWS`."""
    missing = -len(x) % ROWS
    return forward(F.pad(x, (0, 0, 0, missing)))[: len(x)] if missing else forward(x)


def _is_rounded_by_onednn(x: Tensor) -> bool:
    """Returns whether autocast rounds `x` (R, in) for oneDNN, by which PyTorch multiplies bfloat16 on a CPU."""
    return x.device.type == "cpu" and x.dim() == 2 and torch.is_autocast_enabled("cpu")


def onednn_is_faster(training: bool) -> bool:
    """Returns whether oneDNN multiplies large layers faster than MKL here, which is measured once.

    Args:
        training: True measures the forward and backward pass, False the forward pass.
    """
    forwards = {"MKL": nn.Linear.forward, "oneDNN": _by_onednn}
    kernels = {name: partial(_pass, forward, training) for name, forward in forwards.items()}
    return fastest(f"linear layers, {'training' if training else 'forward'}", kernels, GAIN) == "oneDNN"


def kernels_of(module: nn.Module) -> str:
    """Describes by what the large linear layers of `module` are multiplied in `fast_linear`; "" if it has none."""
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and layer.weight.numel() >= LARGE]
    if not layers or not _mkl() or layers[0].weight.device.type != "cpu":
        return ""
    training, forward = ("oneDNN" if onednn_is_faster(grad) else "MKL" for grad in (True, False))
    return f"large linear layers are multiplied by {training}, without gradient by {forward}"


def _pass(forward: Callable[[nn.Linear, Tensor], Tensor], training: bool) -> None:
    """Runs a layer of medium size once, as `onednn_is_faster` measures it."""
    layer, x = _probe()
    with torch.set_grad_enabled(training):
        out = forward(layer, x)
        if training:
            torch.autograd.grad(out, (x, layer.weight), torch.ones_like(out))


@cache
def _probe() -> tuple[nn.Linear, Tensor]:
    layer = nn.Linear(2048, 1024, dtype=torch.float32)
    return layer, torch.rand(128, 2048, dtype=torch.float32, requires_grad=True)


def _by_onednn(layer: nn.Linear, x: Tensor) -> Tensor:
    out: Tensor = F.linear(x.to_mkldnn(), layer.weight, layer.bias).to_dense()
    return out


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Returns whether both are plain float32 tensors on the CPU; PyTorch reports other inputs that do not fit."""
    return (
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[1:] == weight.shape[1:]
        and not torch.is_autocast_enabled("cpu")
    )


class _Dropout(_Fast):
    def __call__(self, x: Tensor) -> Tensor:
        p, training = float(self.layer.p), self.layer.training
        dropped = p * BYTE  # number of values of a byte that drop
        if not training or x.device.type != "cpu" or dropped != int(dropped) or p == 1:
            return nn.Dropout.forward(self.layer, x)
        drawn = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
        return x * (drawn[: x.numel()].view(x.shape) >= int(dropped)) / (1 - p)
