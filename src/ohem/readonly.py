"""The read-only pass (paper, section 4.2): a forward that leaves no trace, neither gradient, memory nor statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ohem.layers import fast_layers


@contextmanager
def read_only(module: nn.Module) -> Iterator[None]:
    """Within it `module` records no gradient, and batch normalisation in train mode keeps its statistics as they are.

    Normalisation still uses the statistics of the batch, and dropout stays on, as in the pass that trains: ranking must
    see the network that is trained. Other layers that change themselves in a forward, as spectral norm does, still do.
    `SyncBatchNorm` uses those of this process alone. Linear layers and dropout are computed as `fast_layers` does: to
    within rounding, and with other random numbers.
    """
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    norms = [m for m in norms if m.track_running_stats or isinstance(m, nn.SyncBatchNorm)]
    saved = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    try:
        for norm in norms:
            # Without running statistics batch norm in train mode normalises by the batch and updates nothing.
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            if isinstance(norm, nn.SyncBatchNorm):
                # In train mode it would wait for the other processes, whose passes may be more, or fewer.
                norm.training = False
        with torch.no_grad(), fast_layers(module):
            yield
    finally:
        # Autocast keeps the weights that it cast. Before PyTorch 2.11 it keeps those cast in here too, which have no
        # gradient: the pass that trains would take them, and train nothing.
        torch.clear_autocast_cache()
        for norm, (mean, var, tracked) in zip(norms, saved, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, var, tracked
            norm.training = True


def waits_for_others(*modules: nn.Module) -> bool:
    """Returns whether a forward of one of the modules waits for those of other processes.

    It does where its weights are sharded (`fully_shard`, `FullyShardedDataParallel`, tensor parallel) or it is wrapped
    in `DistributedDataParallel` for itself. Then every process must make as many forwards as the others.
    """
    kinds = {type(part) for module in modules for part in module.modules()}
    bases = {base for kind in kinds for base in kind.__mro__}
    tensors = {type(weight) for module in modules for weight in module.parameters()}
    homes = {kind.__module__ for kind in bases | tensors}
    return any(home.startswith(("torch.distributed.", "torch.nn.parallel.")) for home in homes)
