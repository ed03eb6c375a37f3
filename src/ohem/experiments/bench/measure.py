"""Times implementations, given as callables, each in a process of its own and in turns. Knows no detector."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ohem.console import make_console
from ohem.errors import InputError
from ohem.experiments.bench.memory import Memory
from ohem.experiments.bench.worker import Built, Failed, Make, Step, serve

Told = TypeVar("Told", Built, Step)
LEAVE_SECONDS = 5.0  # in which a worker that is done may leave by itself
NO_MEMORY = "leave this arm out, take smaller or fewer images or RoIs, or measure the arms one by one (--apart)"


@dataclass(frozen=True)
class Measurement:
    """Of one arm."""

    seconds: tuple[float, ...]
    """Of each step, those of the warm-up left out."""
    cpu_seconds: tuple[float, ...]
    """The same, as all cores together were at work: which a busy machine disturbs less."""
    warmup_seconds: tuple[float, ...]
    shown: tuple[Mapping[str, Any], ...]
    """What each step was shown, warm-up first."""
    built: Memory
    """Before the first step: what interpreter, libraries, data set and model need."""
    peak: Memory
    """After the last step."""
    threads: int | None
    """Of torch; None where it was not used."""
    device: str


def measure(
    arms: Mapping[str, Make], *, steps: int = 5, warmup: int = 1, apart: bool = False, progress: bool = True
) -> dict[str, Measurement]:
    """Seconds of each of `steps` steps and peak memory of every arm, in the order given.

    Every arm has a fresh interpreter of its own. They take turns, one step each, while the others wait; each round
    begins with another arm, so what disturbs the machine disturbs all alike.

    Args:
        arms: name -> what makes the `Workload` in its process: picklable, such as a function of a module, or
            `functools.partial` of one, that is a `contextlib.contextmanager`.
        steps: to report; `warmup` more are done before.
        apart: one arm after the other, in place of in turns: for arms that do not fit into memory side by side.
        progress: show a bar on standard error.

    Raises:
        InputError: an arm met bad input, ran out of memory, or died.
    """
    found: dict[str, Measurement] = {}
    with _progress_bar(progress) as bar:
        task = bar.add_task("building", total=len(arms) * (steps + warmup))
        for group in [[name] for name in arms] if apart else [list(arms)]:
            with ExitStack() as stack:
                workers = [stack.enter_context(_running(name, arms[name])) for name in group]
                for worker in workers:
                    worker.hear_built()
                for step in range(warmup + steps):
                    for worker in _rotated(workers, step):
                        bar.update(task, description=worker.name)
                        worker.do(step)
                        bar.advance(task)
                found |= {worker.name: worker.measurement(warmup) for worker in workers}
    return found


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, name: str, make: Make) -> None:
        self.name = name
        self.steps: list[Step] = []
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        # Daemons end with the parent should it never come to `_running`'s end.
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # the worker's is now the only other end: when it dies, we hear so
        self._tell(make)

    def hear_built(self) -> None:
        self.built = self._hear(Built)

    def do(self, step: int) -> None:
        self._tell(step)
        self.steps.append(self._hear(Step))

    def measurement(self, warmup: int) -> Measurement:
        seconds = tuple(step.seconds for step in self.steps)
        return Measurement(
            seconds=seconds[warmup:],
            cpu_seconds=tuple(step.cpu_seconds for step in self.steps[warmup:]),
            warmup_seconds=seconds[:warmup],
            shown=tuple(step.shown for step in self.steps),
            built=self.built.memory,
            peak=self.steps[-1].memory,
            threads=self.built.threads,
            device=self.built.device,
        )

    def leave(self) -> None:
        self._tell(None)
        self.process.join(LEAVE_SECONDS)

    def _tell(self, message: object) -> None:
        with suppress(BrokenPipeError):  # why it died is for `_hear` to say
            self.connection.send(message)

    def _hear(self, kind: type[Told]) -> Told:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise InputError(f"{self.name}: {self._how_it_died()}") from error
        if isinstance(answer, Failed):
            where = f"{self.name}, {'building' if kind is Built else f'step {len(self.steps) + 1}'}"
            remedy = f": {NO_MEMORY}" if answer.out_of_memory else ""
            raise InputError(f"{where}: {answer.sentence}{remedy}")
        assert isinstance(answer, kind)
        return answer

    def _how_it_died(self) -> str:
        self.process.join()
        status = self.process.exitcode or 0
        if status == -signal.SIGKILL:
            return f"its process was killed, as a system does that runs out of memory: {NO_MEMORY}"
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return f"its process ended {how} before its steps were done: see what it printed"


@contextmanager
def _running(name: str, make: Make) -> Iterator[_Worker]:
    worker = _Worker(name, make)
    try:
        yield worker
        worker.leave()
    finally:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _rotated(workers: Sequence[_Worker], by: int) -> list[_Worker]:
    by %= len(workers)
    return [*workers[by:], *workers[:by]]


def _progress_bar(enabled: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=make_console(stderr=True), disable=not enabled)
