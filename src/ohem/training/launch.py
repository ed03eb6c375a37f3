"""Devices and processes, by Fabric."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor

from ohem.errors import InputError
from ohem.training.config import RunConfig


@contextmanager
def launched(config: RunConfig) -> Iterator[Fabric]:
    """Fabric on the devices of `config`, or on those that torchrun started, its processes started and, later, parted.

    Raises:
        InputError: the machine has no such devices, or they cannot compute in that precision.
    """
    devices = os.environ.get("LOCAL_WORLD_SIZE", config.devices)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*available but not used")  # which the person has just decided
            fabric = Fabric(
                accelerator=config.accelerator,
                devices=int(devices) if devices.lstrip("-").isdigit() else devices,
                num_nodes=nodes,
                precision=config.precision,
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--run.accelerator {config.accelerator}, --run.devices {devices} and --run.precision {config.precision} "
            f"do not fit this machine ({error}): choose others"
        ) from error
    fabric.launch()
    # Mixed precision would round every box that is passed to the model, by pixels; images are bytes.
    fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]
    try:
        yield fabric
    finally:
        # A process that exits while still connected may abort the ones it is connected to.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def agreed(fabric: Fabric, number: int) -> int:
    """The highest of the numbers that the processes give: if one must stop, all must, or they wait for ever."""
    if fabric.world_size == 1:
        return number
    return int(cast(Tensor, fabric.all_reduce(torch.tensor(number, device=fabric.device), reduce_op="max")))
