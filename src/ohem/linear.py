"""Linear layers by a faster matrix product than PyTorch's own.

PyTorch for x86 multiplies float32 by MKL, which on AMD's processors uses half of what they have. The oneDNN inside the
same PyTorch does not: fc6 of VGG16 takes it a third to half of the time there, in the same precision, and no more than
MKL on Intel's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


@contextmanager
def by_onednn(module: nn.Module) -> Iterator[None]:
    """Within it the linear layers of `module` multiply by oneDNN where that can be faster; elsewhere as ever."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        yield
        return
    with forwards(module, _multiply):
        yield


@contextmanager
def forwards(module: nn.Module, make: Callable[[nn.Linear], Forward]) -> Iterator[None]:
    """Within it each linear layer of `module` has the forward that `make` returns, unless it had one of its own."""
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    try:
        for layer in layers:
            layer.forward = make(layer)  # type: ignore[method-assign]  # of this instance, until it is removed
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _multiply(layer: nn.Linear) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if _possible(x, layer.weight):
            return F.linear(x.to_mkldnn(), layer.weight, layer.bias).to_dense()
        return F.linear(x, layer.weight, layer.bias)

    return forward


def _possible(x: Tensor, weight: Tensor) -> bool:
    """Whether these are float32 in memory, neither traced nor sharded; what does not fit gets PyTorch's own error."""
    return (
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[1:] == weight.shape[1:]
        and not torch.is_autocast_enabled("cpu")
    )
