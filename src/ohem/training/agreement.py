"""What the processes of a training agree on: if one stops or fails, all stop, or the others would wait for ever."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from lightning_fabric import Fabric

from ohem.errors import InputError
from ohem.files import describe_os_error
from ohem.training.launch import agreed

T = TypeVar("T")
_FAILED = 1 << 16  # above the number of every signal


class Failed(Exception):
    """Something failed between two steps, in this process or in another one.

    Attributes:
        error: to be raised in this process; SystemExit(2) where another process reports the failure.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Agreement:
    """Signals and failures, agreed on by all processes.

    Args:
        fabric: of the training.
        received: numbers of the signals that came, to which more are added as they come.
    """

    def __init__(self, fabric: Fabric, received: Sequence[int]) -> None:
        self.fabric, self.received = fabric, received
        self._failure: Exception | None = None

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Returns what `action` gives; None where it fails, which the next `check` reports."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001  it is raised once all processes know of it
            self._failure = self._failure or error
            return None

    def check(self) -> int:
        """Returns the highest number of a signal that any process received, or 0. All processes must call it.

        Raises:
            Failed: an attempt failed in one of the processes.
        """
        failure, self._failure = self._failure, None
        # The lowest of the processes that failed reports it, so that the person reads one sentence.
        number = first_of(self.fabric) + _FAILED if failure else max(self.received, default=0)
        highest = agreed(self.fabric, number)
        if highest < _FAILED:
            return highest
        raise Failed(failure if failure and highest == number else SystemExit(2))


def first_of(fabric: Fabric) -> int:
    """Returns a number above 0 that is the highest in the first process."""
    return fabric.world_size - fabric.global_rank


def describe(error: BaseException) -> str:
    """Returns the sentence for `error`."""
    if isinstance(error, OSError):
        return describe_os_error(error)
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
