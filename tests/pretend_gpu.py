"""A device that is none: its tensors have their values on the CPU, and mixing the two fails as it does with a GPU.

It is named "meta", the one device besides the CPU that every build of PyTorch knows; unlike there, values are real.
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
# These take tensors of either device: copies, and indices on the CPU.
MIXING = (aten._to_copy, aten.copy_, aten.index, aten.index_put, aten.index_put_)


class Pretended(Tensor):
    """A tensor of that device; `held` has its values."""

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
    """Makes what is asked for on that device, where no argument is a tensor of it."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, dict(kwargs or {}))


def _call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    pretended = [isinstance(each, Pretended) for each in tensors]
    if any(each.device == PRETENDED and not isinstance(each, Pretended) for each in tensors):
        raise RuntimeError(f"{func}: a tensor of that device has no values, since PyTorch made it without a dispatch")
    strange = [each for each in tensors if not isinstance(each, Pretended) and each.dim() > 0]
    if any(pretended) and strange and func.overloadpacket not in MIXING:
        raise RuntimeError(f"{func}: tensors on two devices, of shapes {[tuple(each.shape) for each in tensors]}")
    device = kwargs.get("device") or (PRETENDED if any(pretended) else CPU)
    if func.overloadpacket is aten.copy_:
        device = args[0].device
    if kwargs.get("device") is not None:
        kwargs["device"] = CPU
    plain = tree_map(lambda each: each.held if isinstance(each, Pretended) else each, (args, kwargs))
    out = func(*plain[0], **plain[1])
    if device.type != PRETENDED.type:
        return out
    given = {id(each.held): each for each in tensors if isinstance(each, Pretended)}
    return tree_map(lambda each: given.get(id(each), Pretended(each)) if isinstance(each, Tensor) else each, out)


class _FromData(TorchFunctionMode):
    """The same for those that are made of Python's numbers, which PyTorch does not dispatch."""

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
            args = (args[0], tuple(torch.tensor(each) if isinstance(each, list) else each for each in args[1]))
        return func(*args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within it tensors can be made on that device, `device="meta"`, and have values."""
    with _FromData(), _Factories():
        yield


def on_gpu(value: Any) -> Any:
    """Tensors in it, or a module's parameters and buffers, moved there."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(Pretended(parameter.data), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else Pretended(buffer)
        return value
    return tree_map(lambda each: Pretended(each) if isinstance(each, Tensor) else each, value)
