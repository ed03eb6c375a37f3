"""Runs a measurement in a process of its own, which ends where it would need too much memory or time. For Linux."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

NO_MEMORY = 77
"""Exit status of a measurement that ran out of memory."""
Result = dict[str, Any]
"""Numbers of a measurement; or `stopped`, why there are none."""


@dataclass(frozen=True)
class Limits:
    """What a measurement may use."""

    gigabytes: float = 8.0
    seconds: float = 600.0
    """CPU seconds, so that other programs do not matter."""


def run_arm(module: str, arguments: Iterable[object], cache: Path, limits: Limits) -> Result:
    """Runs `python -m benchmarks.scale.MODULE ARGUMENTS` with the cache of the user in `cache`; returns its result."""
    command = [sys.executable, "-m", f"benchmarks.scale.{module}", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    most, seconds = int(limits.gigabytes * 1e9), max(1, round(limits.seconds))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))

    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, preexec_fn=limit)
    if done.returncode == -signal.SIGXCPU:
        return {"stopped": f"takes more than {seconds} s"}
    if done.returncode in (NO_MEMORY, -signal.SIGABRT, -signal.SIGKILL):
        return {"stopped": f"needs more than {limits.gigabytes:g} GB"}
    done.check_returncode()
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def print_result(measure: Callable[[], Result]) -> None:
    """Prints the result of `measure` for `run_arm`."""
    try:
        print(json.dumps(measure()))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        sys.exit(NO_MEMORY)


def cost_of(action: Callable[[], object]) -> Result:
    """Returns CPU seconds of `action`, and by how many megabytes the highest resident memory has grown."""
    before, started = highest_memory(), process_time()
    kept = action()
    result = {"seconds": process_time() - started, "megabytes": highest_memory() - before}
    del kept
    return result


def highest_memory() -> float:
    """Returns the highest resident memory of this process in megabytes; Linux alone has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
