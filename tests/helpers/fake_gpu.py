"""A simulated GPU. Its tensors keep their values on the CPU, and mixing devices fails as it does with a GPU.

The device is named "meta", since every build of PyTorch has it. Other than there, the tensors have values.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PRETENDED = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten
INDEXING = (aten.index, aten.index_put, aten.index_put_)
# These operations take tensors of both devices: copies, and indices on the CPU.
MIXING = (aten._to_copy, aten.copy_, aten.index, aten.index_put, aten.index_put_)


class Pretended(Tensor):
    """A tensor on the simulated GPU. `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PRETENDED,
            requires_grad=held.requires_grad,
        )
        made.held = held.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, dict(kwargs or {}))


class _Factories(TorchDispatchMode):
    """Makes tensors on that device where an operation requests it."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, dict(kwargs or {}))


def _call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    pretended = [isinstance(value, Pretended) for value in tensors]
    if any(value.device == PRETENDED and not isinstance(value, Pretended) for value in tensors):
        raise RuntimeError(f"{func}: a tensor of that device has no values, since PyTorch made it without a dispatch")
    strange = [value for value in tensors if not isinstance(value, Pretended) and value.dim() > 0]
    if any(pretended) and strange and func.overloadpacket not in MIXING:
        raise RuntimeError(f"{func}: tensors on two devices, of shapes {[tuple(value.shape) for value in tensors]}")
    device = kwargs.get("device") or (PRETENDED if any(pretended) else CPU)
    if func.overloadpacket is aten.copy_:
        device = args[0].device
    if kwargs.get("device") is not None:
        kwargs["device"] = CPU
    plain = tree_map(lambda value: value.held if isinstance(value, Pretended) else value, (args, kwargs))
    out = func(*plain[0], **plain[1])
    if device.type != PRETENDED.type:
        return out
    given = {id(value.held): value for value in tensors if isinstance(value, Pretended)}
    return tree_map(lambda value: given.get(id(value), Pretended(value)) if isinstance(value, Tensor) else value, out)


class _FromData(TorchFunctionMode):
    """Makes tensors of Python's numbers, which PyTorch does not dispatch."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor and isinstance(args[0], Pretended):
            return Pretended(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or CPU).type == "meta":
            made = func(*args, **{**kwargs, "device": None})
            return made if isinstance(made, Pretended) else Pretended(made)
        if func is Tensor.__getitem__ and isinstance(args[0], Pretended) and isinstance(args[1], tuple):
            args = (args[0], tuple(torch.tensor(value) if isinstance(value, list) else value for value in args[1]))
        return func(*args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Lets `device="meta"` make tensors with values on the simulated GPU."""
    with _FromData(), _Factories():
        yield


def on_gpu(values: Any) -> Any:
    """Moves the tensors in `value`, or the parameters and buffers of a module, to the simulated GPU."""
    if isinstance(values, nn.Module):
        for module in values.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(Pretended(parameter.data), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else Pretended(buffer)
        return values
    return tree_map(lambda value: Pretended(value) if isinstance(value, Tensor) else value, values)


class HostReads(TorchDispatchMode):
    """Records in `names` the operations that make the host wait for a GPU: the host needs their result or its length.

    `tolist` is no operation, so it is not recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in INDEXING:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            waits = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
        if waits or func.name() == "torchvision::nms":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def host_reads(function: Any) -> list[str]:
    """Returns the operations of `function()` that make the host wait for a GPU."""
    with HostReads() as reads:
        function()
    return reads.names
