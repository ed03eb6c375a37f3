"""The processes of a training, by Fabric: their start, and what they agree on.

If one process stops or fails, all must stop, or the others would wait for ever.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch.distributed
from torch import Tensor

from ohem.config.schema import RunConfig
from ohem.detection.shortlist import Shortlist
from ohem.errors import InputError
from ohem.io.files import describe_os_error
from ohem.kernels import choice


@contextmanager
def without_its_import(package: str) -> Iterator[None]:
    """Makes `import package` give an empty module, unless the package is imported already or not installed."""
    if package in sys.modules or find_spec(package) is None:
        yield
        return
    sys.modules[package] = ModuleType(package)
    try:
        yield
    finally:
        del sys.modules[package]


# Fabric imports torchmetrics, if installed, and takes its version from the metadata where the module has none. The real
# import takes 3 seconds in each process, since it also imports matplotlib, scipy.signal and parts of transformers.
with without_its_import("torchmetrics"):
    from lightning_fabric import Fabric as Fabric

T = TypeVar("T")
SETTLE = 0.1
"""Seconds before the processes are disconnected.

torch 2.8 may wait for ever where an error ends a training at once: the end of a `DistributedDataParallel` holds the
interpreter's lock while it waits for a thread of gloo, which needs that lock to finish the last exchange.
"""
POLL_SECONDS = 0.01
_FAILED = 1 << 16  # above the number of every signal


@contextmanager
def launched(config: RunConfig) -> Iterator[Fabric]:
    """Starts the processes on the devices of `config`, or joins those of torchrun; disconnects them at the end.

    Raises:
        InputError: the machine has no such devices, or they cannot compute in that precision.
    """
    devices = os.environ.get("LOCAL_WORLD_SIZE", config.devices)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*available but not used")  # the user decided so
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
    with _only_this_attempt():
        fabric.launch()
    # Mixed precision would round the boxes that are passed to the model, by whole pixels; images are bytes.
    fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]
    # Double precision would round the losses to float32.
    fabric.strategy.precision.convert_output = lambda data: data  # type: ignore[method-assign]
    try:
        yield fabric
    finally:
        # A process that exits while still connected may abort the ones it is connected to.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            time.sleep(SETTLE)
            torch.distributed.destroy_process_group()


@contextmanager
def _only_this_attempt() -> Iterator[None]:
    """Makes processes that torchrun starts again connect to one another, and not to those that have ended.

    The agent of torchrun keeps its store when it starts the processes again: with the addresses of those before, under
    the same keys (github.com/pytorch/pytorch/issues/135712). A process that reads an old one waits for ever.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # the first process has a store of its own
        yield
        return
    module: Any = torch.distributed
    connect = module.init_process_group

    def connect_anew(*arguments: Any, **options: Any) -> None:
        connect(*arguments, **options, store=_new_part(*next(module.rendezvous("env://"))))

    module.init_process_group = connect_anew
    try:
        yield
    finally:
        module.init_process_group = connect


def _new_part(store: Any, rank: int, processes: int) -> Any:
    """Returns a part of `store` that no earlier process has written to, the same in all processes.

    The number of the attempt would not do: agents on several machines count differently. Each process writes a number
    that nobody else has, and waits until the first one has answered it with a name for the part.
    """
    name = own = uuid4().hex
    if rank:
        store.set(f"ohem {rank}", own)
        while not store.check([own]):
            time.sleep(POLL_SECONDS)
        name = store.get(own).decode()
        store.add(name, 1)
    while not rank and store.add(name, 0) < processes - 1:
        for key in (f"ohem {other}" for other in range(1, processes)):
            if store.check([key]):
                store.set(store.get(key).decode(), name)  # or that of an earlier process, which does no harm
        time.sleep(POLL_SECONDS)
    return cast(Any, torch.distributed).PrefixStore(name, store)


def agreed(fabric: Fabric, number: int) -> int:
    """Returns the highest of the numbers that the processes give: if one must stop, all stop."""
    if fabric.world_size == 1:
        return number
    return int(cast(Tensor, fabric.all_reduce(torch.tensor(number, device=fabric.device), reduce_op="max")))


def share_losses(shortlist: Shortlist, fabric: Fabric) -> None:
    """Gives the losses that a step remembered to all processes: the next visit of an image may be in another one."""
    own = shortlist.take_updates()
    if fabric.world_size > 1:
        updates: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(updates, own)
        for update in updates:
            shortlist.visits.update(update)


def share_kernels(fabric: Fabric) -> None:
    """Makes all processes use the kernels that the first one measured to be the fastest, where processors are equal."""
    if fabric.world_size > 1:
        choice.restore(of_first(fabric, choice.choices()))


@contextmanager
def reported_once(fabric: Fabric) -> Iterator[None]:
    """Lets the first process alone report bad input that all processes see; the others end with exit status 2."""
    try:
        yield
    except InputError:
        if fabric.is_global_zero:
            raise
        raise SystemExit(2) from None


class Failed(Exception):
    """A failure between two steps, in this process or in another one.

    Attributes:
        error: the exception to raise in this process; SystemExit(2) where another process reports the failure.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Agreement:
    """Agreement of all processes on signals and failures.

    Args:
        fabric: of the training.
        received: list to which the numbers of received signals are added.
    """

    def __init__(self, fabric: Fabric, received: Sequence[int]) -> None:
        self.fabric, self.received = fabric, received
        self._failure: Exception | None = None

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Returns what `action` returns; None where it fails, which the next `check` reports."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001  it is raised once all processes know it
            self._failure = self._failure or error
            return None

    def check(self) -> int:
        """Returns the highest number of a signal that any process received, or 0. All processes must call it.

        Raises:
            Failed: an attempt failed in one of the processes.
        """
        failure, self._failure = self._failure, None
        # Only the first process that failed reports it, so that the user reads one sentence.
        number = first_of(self.fabric) + _FAILED if failure else max(self.received, default=0)
        highest = agreed(self.fabric, number)
        if highest < _FAILED:
            return highest
        raise Failed(failure if failure and highest == number else SystemExit(2))


def compute_shared(fabric: Fabric, count: int, compute: Callable[[range], Iterable[T]]) -> list[T]:
    """Divides items among the processes, and returns the results of all, in order, in every process.

    Args:
        fabric: the processes, all of which must call it.
        count: number of items.
        compute: returns the results of the items at some places, in their order.

    Raises:
        Exception: that of `compute` in the first process that failed; SystemExit(2) in the others.
    """
    if fabric.world_size == 1:
        return list(compute(range(count)))
    agreement = Agreement(fabric, ())
    own = agreement.attempt(lambda: list(compute(range(fabric.global_rank, count, fabric.world_size))))
    try:
        agreement.check()
    except Failed as failed:
        raise failed.error from None
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, own)
    return [parts[place % fabric.world_size][place // fabric.world_size] for place in range(count)]


def first_process_first(fabric: Fabric, action: Callable[[], T]) -> T:
    """Returns what `action` returns; the others call it when the first process has made what they then find.

    Raises:
        Exception: that of the first process; SystemExit(2) in the others.
    """
    agreement = Agreement(fabric, ())
    result = agreement.attempt(action) if fabric.is_global_zero else None
    try:
        agreement.check()
    except Failed as failed:
        raise failed.error from None
    return cast(T, result) if fabric.is_global_zero else action()


def of_first(fabric: Fabric, value: T) -> T:
    """Returns the value of the first process."""
    values: list[Any] = [value]
    if fabric.world_size > 1:
        torch.distributed.broadcast_object_list(values)
    return cast(T, values[0])


def first_of(fabric: Fabric) -> int:
    """Returns a number above 0 that is the highest in the first process."""
    return fabric.world_size - fabric.global_rank


def describe(error: BaseException) -> str:
    """Returns the sentence for `error`."""
    if isinstance(error, OSError):
        return describe_os_error(error)
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
