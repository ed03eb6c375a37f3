"""What this process needs of memory."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes: of main memory the resident set of the process, of a GPU's what torch's allocator gave, None on a CPU."""

    resident: int
    resident_peak: int
    allocated: int | None
    allocated_peak: int | None

    @property
    def now(self) -> int:
        """Where the model is."""
        return self.resident if self.allocated is None else self.allocated

    @property
    def peak(self) -> int:
        """Most so far, where the model is."""
        return self.resident_peak if self.allocated_peak is None else self.allocated_peak


def memory(device: str) -> Memory:
    """Of this process, which computes on `device`, as torch names it."""
    if not device.startswith("cuda"):
        return Memory(*_resident(), None, None)
    import torch

    return Memory(*_resident(), torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))


def _resident() -> tuple[int, int]:
    """Now, and at most so far; where the system does not tell the former, the latter is given for both."""
    try:
        # Not ru_maxrss, which a process inherits through fork and exec: it would be at least that of our parent.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) * 1024, int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak
