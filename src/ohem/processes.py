"""A process that another one started, and that is not to outlive it."""

import os
import signal
import threading
import time

PARENT = "OHEM_PARENT"
"""Environment variable: the process that started this one, whose end this one follows."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""Time for a training to write its checkpoint."""


def end_with_parent() -> None:
    """Ends this process some seconds after the one that `OHEM_PARENT` names, if that started it; else does nothing.

    SIGTERM comes first, after which a training writes its checkpoint; what still runs after `GRACE_SECONDS` exits.
    """
    parent = os.environ.pop(PARENT, "")  # the processes that this one starts have another parent
    if parent.isdigit():
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)
