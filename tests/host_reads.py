"""Which operations would make the host wait for a GPU: those whose result, or its length, the host must know."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class HostReads(TorchDispatchMode):
    """Within it `found` has the names of the operations that would; `tolist`, which is none, is not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in INDEXING:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            waits = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
        if waits or func.name() == "torchvision::nms":
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


def host_reads(function: Any) -> list[str]:
    """The operations of `function()` that would make the host wait."""
    with HostReads() as reads:
        function()
    return reads.found
