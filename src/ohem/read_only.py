"""The read-only pass (paper, section 4.2): a forward pass that keeps no gradient, no memory and no statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ohem.kernels.fast_linear import fast_layers


@contextmanager
def read_only(module: nn.Module) -> Iterator[None]:
    """Makes `module` record no gradient in this context, and keeps the statistics of batch norm in train mode.

    Batch norm uses the statistics of the batch and dropout stays on, as in the training pass, since the ranking must
    use the network that is trained. `SyncBatchNorm` uses the statistics of this process alone. Other layers that change
    themselves in a forward pass, such as spectral norm, still do. Linear layers and dropout are computed by
    `fast_layers`: equal up to rounding, and with other random numbers.
    """
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    norms = [m for m in norms if m.track_running_stats or isinstance(m, nn.SyncBatchNorm)]
    saved = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    try:
        for norm in norms:
            # Without running statistics batch norm in train mode normalises by the batch and updates nothing.
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            if isinstance(norm, nn.SyncBatchNorm):
                # In train mode it would wait for the other processes, which may make another number of passes.
                norm.training = False
        with torch.no_grad(), fast_layers(module):
            yield
    finally:
        # Autocast keeps the weights that it cast. Before PyTorch 2.11 it also keeps those cast here, without gradient:
        # the training pass would use them, and train nothing.
        torch.clear_autocast_cache()
        for norm, (mean, var, tracked) in zip(norms, saved, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, var, tracked
            norm.training = True


def waits_for_others(*modules: nn.Module) -> bool:
    """Returns whether a forward pass of one of the modules waits for other processes.

    It does if the weights are sharded (`fully_shard`, `FullyShardedDataParallel`, tensor parallel) or the module itself
    is wrapped in `DistributedDataParallel`. Then all processes must make the same number of forward passes.
    """
    kinds = {type(part) for module in modules for part in module.modules()}
    bases = {base for kind in kinds for base in kind.__mro__}
    tensors = {type(weight) for module in modules for weight in module.parameters()}
    homes = {kind.__module__ for kind in bases | tensors}
    return any(home.startswith(("torch.distributed.", "torch.nn.parallel.")) for home in homes)
