"""The choice among kernels that compute the same: the fastest on this processor, measured once in a process.

A resumed training restores the choice of its checkpoint, since another kernel rounds differently.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

TRIALS = 4
"""Number of measurements of each kernel, of which the fastest counts."""
TIE = 1.25
"""Kernels whose times differ by less than this factor are as fast as each other; the first of them is chosen."""
HOPELESS = 3
"""A kernel that takes this many times as long as the fastest is not measured again."""
_chosen: dict[str, str] = {}


def fastest(what: str, kernels: Mapping[str, Callable[[], object]], gain: float) -> str:
    """Returns the name of the fastest kernel for `what`. The first of `kernels` is the default.

    Args:
        what: name of the choice, which is made once in a process.
        kernels: name -> function to measure. The state of the random number generator does not change.
        gain: another kernel than the default is chosen if it takes at most this share of the time of the default: a
            small difference may be noise, and the next process would choose otherwise.
    """
    if _chosen.get(what) not in kernels:
        with torch.random.fork_rng(devices=[]), _one_thread():
            seconds = measure(kernels)
        default, *others = kernels
        fast = [name for name in others if seconds[name] <= gain * seconds[default]]
        most = TIE * min(seconds.values())
        _chosen[what] = next((name for name in fast if seconds[name] <= most), default)
    return _chosen[what]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Makes PyTorch use one thread in this context: several would wait for each other where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(kernels: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the CPU seconds of the fastest of `TRIALS` calls of each kernel, in turns, after one call to warm up."""
    for kernel in kernels.values():
        kernel()
    seconds = dict.fromkeys(kernels, float("inf"))
    for _ in range(TRIALS):
        for name, kernel in kernels.items():
            if min(seconds.values()) * HOPELESS < seconds[name] < float("inf"):
                continue
            started = time.thread_time()
            kernel()
            seconds[name] = min(seconds[name], time.thread_time() - started)
    return seconds


def choices() -> dict[str, str]:
    """Returns the choices of this process, what -> name of the kernel, with the "processor" that they are for."""
    return {"processor": processor(), **_chosen}


def restore(chosen: Mapping[str, str]) -> None:
    """Makes `chosen`, which `choices` returned, the choices of this process, if they are for the same processor."""
    if chosen.get("processor") == processor():
        _chosen.update({what: kernel for what, kernel in chosen.items() if what != "processor"})


def forget() -> None:
    """Forgets the choices of this process, so that the next use measures again."""
    _chosen.clear()


def processor() -> str:
    """Describes the CPU: its name and the instructions that PyTorch uses."""
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"


def processor_name() -> str:
    """Returns the name of the CPU as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
