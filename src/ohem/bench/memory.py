"""The memory that this process uses, and the memory that is free."""

import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory (resident set of the process) and of GPU memory (torch's allocator; None on a CPU)."""

    resident: int
    resident_peak: int
    allocated: int | None
    allocated_peak: int | None

    @property
    def now(self) -> int:
        """Bytes in use on the device of the model."""
        return self.resident if self.allocated is None else self.allocated

    @property
    def peak(self) -> int:
        """Highest number of bytes so far on the device of the model."""
        return self.resident_peak if self.allocated_peak is None else self.allocated_peak


def memory(device: str) -> Memory:
    """Returns the memory of this process, which computes on `device`, a name of torch: "cpu", "cuda:0"."""
    if not device.startswith("cuda"):
        return Memory(*_resident(), None, None)
    import torch

    return Memory(*_resident(), torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))


def _resident() -> tuple[int, int]:
    """Returns the present and the highest resident set; the highest twice if the system reports only that."""
    try:
        # Not ru_maxrss: a process inherits it through fork and exec, so it is at least that of the parent.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) * 1024, int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak


def available(device: str) -> int | None:
    """Returns the free memory of `device` in bytes; None if the system does not report it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
    return min([free, *_left_of_limits()])


def _left_of_limits(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yields the bytes that the limit of a container leaves; nothing if there is no limit."""
    files = (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
    for limit, used, stat in files:
        # Without a container the files are missing, or the limit is "max".
        with suppress(OSError, ValueError, KeyError):
            numbers = dict(line.split() for line in (root / stat).read_text().splitlines())
            cache = int(numbers["inactive_file"])  # files that the system drops if it needs the memory
            yield int((root / limit).read_text()) - int((root / used).read_text()) + cache
