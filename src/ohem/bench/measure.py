"""Measures methods, given as callables, in turns, each in its own process. Independent of any detector."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ohem.bench.memory import Memory
from ohem.bench.worker import Built, Failed, Make, Step, serve
from ohem.errors import InputError
from ohem.io.console import make_console

Answer = TypeVar("Answer", Built, Step)
EXIT_SECONDS = 5.0  # for a worker to exit by itself when it is done
NO_MEMORY = (
    "leave this method out, take smaller or fewer images or RoIs, or measure the methods one by one (--sequential)"
)


@dataclass(frozen=True)
class Measurement:
    """Measurements of one method."""

    seconds: tuple[float, ...]
    """Seconds of each step, without the warm-up."""
    cpu_seconds: tuple[float, ...]
    """CPU seconds of each step, of all cores together; other programs disturb them less."""
    warmup_seconds: tuple[float, ...]
    """Seconds of each step of the warm-up."""
    batches: tuple[Mapping[str, Any], ...]
    """Description of the mini-batch of each step, warm-up first."""
    built: Memory
    """Memory before the first step: of interpreter, libraries, data set and model."""
    peak: Memory
    """Memory after the last step."""
    threads: int | None
    """Number of threads of torch; None if torch was not used."""
    device: str
    """Name of the device."""


def measure(
    methods: Mapping[str, Make], *, steps: int = 5, warmup: int = 1, sequential: bool = False, progress: bool = True
) -> dict[str, Measurement]:
    """Measures the seconds of each step and the peak memory of every method.

    Every method has its own new interpreter. The methods take turns: each does one step while the others wait. Every
    round begins with another method, so that other programs on the machine disturb all methods equally.

    Args:
        methods: name -> function that makes the `Workload` in its process: a `contextlib.contextmanager` of a
            module, or a `functools.partial` of one, so that it can be pickled.
        steps: number of measured steps.
        warmup: number of steps before them that are not measured.
        sequential: whether to measure one method after the other, because memory does not hold all of them.
        progress: whether to print a progress bar on standard error.

    Returns:
        The measurements of the methods, in the same order.

    Raises:
        InputError: a method had bad input, ran out of memory, or its process ended.
    """
    measurements: dict[str, Measurement] = {}
    with _progress_bar(progress) as bar:
        task = bar.add_task("building", total=len(methods) * (steps + warmup))
        for group in [[name] for name in methods] if sequential else [list(methods)]:
            with ExitStack() as stack:
                workers = [stack.enter_context(_running(name, methods[name])) for name in group]
                for worker in workers:
                    worker.wait_until_built()
                for step in range(warmup + steps):
                    for worker in _rotated(workers, step):
                        bar.update(task, description=worker.name)
                        worker.run_step(step)
                        bar.advance(task)
                measurements |= {worker.name: worker.measurement(warmup) for worker in workers}
    return measurements


class _Worker:
    """The worker process of one method, in the process of its parent."""

    def __init__(self, name: str, make: Make) -> None:
        self.name = name
        self.steps: list[Step] = []
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        # A daemon ends with its parent, even if the parent does not reach the end of `_running`.
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # now only the worker has the other end, so its death closes the connection
        self._send(make)

    def wait_until_built(self) -> None:
        self.built = self._receive(Built)

    def run_step(self, step: int) -> None:
        self._send(step)
        self.steps.append(self._receive(Step))

    def measurement(self, warmup: int) -> Measurement:
        seconds = tuple(step.seconds for step in self.steps)
        return Measurement(
            seconds=seconds[warmup:],
            cpu_seconds=tuple(step.cpu_seconds for step in self.steps[warmup:]),
            warmup_seconds=seconds[:warmup],
            batches=tuple(step.batch for step in self.steps),
            built=self.built.memory,
            peak=self.steps[-1].memory,
            threads=self.built.threads,
            device=self.built.device,
        )

    def end(self) -> None:
        self._send(None)
        self.process.join(EXIT_SECONDS)

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # `_receive` reports why it died
            self.connection.send(message)

    def _receive(self, kind: type[Answer]) -> Answer:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise InputError(f"{self.name}: {self._cause_of_death()}") from error
        if isinstance(answer, Failed):
            where = f"{self.name}, {'building' if kind is Built else f'step {len(self.steps) + 1}'}"
            remedy = f": {NO_MEMORY}" if answer.out_of_memory else ""
            raise InputError(f"{where}: {answer.sentence}{remedy}")
        assert isinstance(answer, kind)
        return answer

    def _cause_of_death(self) -> str:
        self.process.join()
        status = self.process.exitcode or 0
        if status == -signal.SIGKILL:
            return f"its process was killed, probably because the system ran out of memory: {NO_MEMORY}"
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return f"its process ended {how} before its steps were done: see what it printed"


@contextmanager
def _running(name: str, make: Make) -> Iterator[_Worker]:
    worker = _Worker(name, make)
    try:
        yield worker
        worker.end()
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
