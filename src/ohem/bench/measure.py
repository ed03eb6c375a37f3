"""Measures methods, given as callables, in turns, each in its own process. Independent of any detector."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ohem.bench.memory import Memory
from ohem.bench.worker import Built, Failed, Make, Step, serve
from ohem.errors import InputError
from ohem.io.console import make_console

Answer = TypeVar("Answer", Built, Step)
EXIT_SECONDS = 5.0  # for a worker to exit by itself when it is done
NO_MEMORY = "leave this method out, or take smaller or fewer images or RoIs"
MARGIN = 1.5
"""A further method must find this multiple of the highest peak so far: methods differ, and other programs run."""


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

    Methods that do not fit into memory with the others wait until those are done. If memory runs out all the same, the
    rest is measured one method after the other. A printed line says so.

    Args:
        methods: name -> function that makes the `Workload` in its process: a `contextlib.contextmanager` of a
            module, or a `functools.partial` of one, so that it can be pickled.
        steps: number of measured steps.
        warmup: number of steps before them that are not measured.
        sequential: whether to measure one method after the other.
        progress: whether to print the progress on standard error.

    Returns:
        The measurements of the methods, in the same order.

    Raises:
        InputError: a method had bad input, ran out of memory alone, or its process ended.
    """
    measurements: dict[str, Measurement] = {}
    with _progress_bar(progress) as bar:
        task = bar.add_task("building", total=len(methods) * (steps + warmup))
        while left := [name for name in methods if name not in measurements]:
            try:
                group = _measure_group({name: methods[name] for name in left}, steps, warmup, sequential, bar, task)
            except _OutOfMemory as error:
                if sequential or error.alone:
                    raise
                bar.console.print(
                    f"{error}\nThe methods that are left are measured one after the other.", soft_wrap=True
                )
                sequential = True
                bar.update(task, completed=len(measurements) * (steps + warmup))
            else:
                measurements |= group
    return {name: measurements[name] for name in methods}


class _OutOfMemory(InputError):
    """A method ran out of memory; `alone` says whether no other method was in memory."""

    alone = True


def _measure_group(
    methods: Mapping[str, Make], steps: int, warmup: int, sequential: bool, bar: Progress, task: TaskID
) -> dict[str, Measurement]:
    """Measures the first of `methods` in turns, as many as fit into memory, or only one if `sequential`."""

    def run_step(worker: _Worker, step: int) -> None:
        bar.update(task, description=f"{worker.name}, step {step + 1} of {warmup + steps}")
        worker.run_step(step)
        bar.advance(task)

    workers: list[_Worker] = []
    with ExitStack() as stack:
        try:
            for name, make in methods.items():
                if workers and (sequential or not _fits(workers)):
                    break
                bar.update(task, description=f"{name}, building")
                worker = stack.enter_context(_running(name, make))
                workers.append(worker)
                worker.wait_until_built()
                run_step(worker, 0)  # its memory decides whether the next method fits
            if len(workers) < len(methods) and not sequential:
                names = ", ".join(worker.name for worker in workers)
                line = f"Memory holds {names} at once: the other methods are measured after them."
                bar.console.print(line, soft_wrap=True)
            for step in range(1, warmup + steps):
                _print_round(bar, step, warmup + steps, workers)
                for worker in _rotated(workers, step):
                    run_step(worker, step)
        except _OutOfMemory as error:
            error.alone = len(workers) == 1
            raise
        return {worker.name: worker.measurement(warmup) for worker in workers}


def _fits(workers: Sequence["_Worker"]) -> bool:
    """Returns whether one more method fits into memory, if it needs as much as the largest of `workers`."""
    free = workers[-1].steps[-1].available
    return free is None or free >= MARGIN * max(worker.steps[-1].memory.peak for worker in workers)


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
            raise self._cause_of_death() from error
        if isinstance(answer, Failed):
            where = f"{self.name}, {'building' if kind is Built else f'step {len(self.steps) + 1}'}"
            if answer.out_of_memory:
                raise _OutOfMemory(f"{where}: {answer.sentence}: {NO_MEMORY}")
            raise InputError(f"{where}: {answer.sentence}")
        assert isinstance(answer, kind)
        return answer

    def _cause_of_death(self) -> InputError:
        self.process.join()
        status = self.process.exitcode or 0
        if status == -signal.SIGKILL:
            why = f"its process was killed, probably because the system ran out of memory: {NO_MEMORY}"
            return _OutOfMemory(f"{self.name}: {why}")
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return InputError(f"{self.name}: its process ended {how} before its steps were done: see what it printed")


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


def _print_round(bar: Progress, done: int, total: int, workers: Sequence[_Worker]) -> None:
    """Prints a line after each round where standard error is a file, in which a bar is not seen."""
    if not bar.disable and not bar.console.is_terminal:
        bar.console.print(
            f"{', '.join(worker.name for worker in workers)}: {done} of {total} steps are done", soft_wrap=True
        )


def _progress_bar(enabled: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=make_console(stderr=True), disable=not enabled)
