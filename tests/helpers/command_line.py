"""Runs the command line as a user runs it from a shell: in this process, or in one of its own."""

import contextlib
import copy
import importlib
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cyclopts

from ohem.cli import main

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes as forks of one that has imported what trainings need, which takes a new interpreter 5 seconds.

Its imports are also those of other functions that take the method "forkserver", as `start_processes` of torch does.
"""
FORKS.set_forkserver_preload(
    # pyarrow imports pandas for a table, which takes a second.
    [__name__, "ohem.training.run", "ohem.evaluation.evaluate", "ohem.bench.workload", "pyarrow.parquet", "pandas"]
)

# Tests train a network of the same layers with fewer channels, in this process and in its forks.
TINY = importlib.import_module("ohem.detection.backbones.tiny")
CHANNELS = TINY.CHANNELS
"""Channels of the network, as a new interpreter has them."""
TINY.CHANNELS = (8, 16, 32, 32, 32)

_assemble = cyclopts.App.assemble_argument_collection
_assembled: dict[tuple[Any, ...], tuple[cyclopts.ArgumentCollection, dict[int, Any]]] = {}


def _assemble_once(app: cyclopts.App, **options: Any) -> cyclopts.ArgumentCollection:
    """Returns a copy of the options of a command: to collect them takes half the time of a command that is refused."""
    key = (app.default_command, repr(app.app_stack.default_parameter), *sorted(options.items()))
    if key not in _assembled:
        made = _assemble(app, **options)
        unchanged = [part for one in made for part in (one.parameter, one.field_info, one.hint, one._lookup)]
        _assembled[key] = made, {id(part): part for part in unchanged}
    made, shared = _assembled[key]
    return copy.deepcopy(made, dict(shared))


_negatives = cyclopts.Argument.negatives.fget
_negatives_of: dict[int, tuple[object, tuple[str, ...]]] = {}


def _negatives_once(argument: cyclopts.Argument) -> tuple[str, ...]:
    """Returns the flags that switch an option off, which a command computes for every option at every word."""
    parameter = argument.parameter
    if id(parameter) not in _negatives_of:
        _negatives_of[id(parameter)] = parameter, _negatives(argument)  # kept, so that no other one has its id
    return _negatives_of[id(parameter)][1]


_match = cyclopts.Argument.match
_missed: dict[tuple[int, int], tuple[object, set[tuple[Any, Any]]]] = {}


def _match_once(argument: cyclopts.Argument, term: Any, **options: Any) -> Any:
    """Matches an option to a word; of each word and key of a file, a command tries all options, and nearly all fail."""
    if options.get("transform"):
        return _match(argument, term, **options)
    made_of = argument.parameter, argument.field_info
    _, missed = _missed.setdefault((id(made_of[0]), id(made_of[1])), (made_of, set()))
    place = term, options.get("delimiter")
    if place in missed:
        raise ValueError
    try:
        return _match(argument, term, **options)
    except ValueError:
        missed.add(place)
        raise


cyclopts.App.assemble_argument_collection = _assemble_once  # type: ignore[method-assign, assignment]
cyclopts.Argument.match = _match_once  # type: ignore[method-assign]
cyclopts.Argument.negatives = property(_negatives_once)  # type: ignore[method-assign, assignment]


class Result(NamedTuple):
    """Exit status and output of a command."""

    code: int
    out: str
    err: str


def ohem(*arguments: object) -> Result:
    """Runs `ohem ARGUMENTS...`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


class Forked:
    """`ohem ARGUMENTS...` in a process of its own, which can be killed.

    Args:
        arguments: arguments of the command.
        folder: an existing folder for the output.
        outputs: files for the output and the errors instead, to which both are appended.
        environment: more variables.
        first: what the process calls before the command.
    """

    def __init__(
        self,
        *arguments: object,
        folder: Path = Path(),
        outputs: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        self._output = list(outputs) or [folder / name for name in ("stdout.txt", "stderr.txt")]
        texts = [str(argument) for argument in arguments]
        self.process = FORKS.Process(target=_run, args=(texts, self._output, environment or {}, first))
        self.process.start()

    def is_alive(self) -> bool:
        """Returns whether the process still runs."""
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 60) -> Result:
        """Returns the result when the process has ended; the status is negative where a signal killed it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()  # or the tests would wait for it at their end
            raise AssertionError(f"it still ran after {seconds} seconds")
        return Result(self.process.exitcode, *(path.read_text() for path in self._output))


def in_processes(
    count: int,
    lines: Sequence[Sequence[object]],
    folder: Path,
    status: int = 0,
    first: Callable[[], None] | None = None,
) -> str:
    """Runs commands in turn, each in `count` processes, which are started as torchrun starts them.

    Args:
        count: number of processes.
        lines: arguments of `ohem`.
        folder: an existing folder for the output.
        status: exit status of the last command, which all processes must have; that of the others is 0.
        first: what the processes call before the commands.

    Returns:
        What the processes printed, one after the other.
    """
    from torch.distributed import TCPStore

    # As the agent of torchrun has them, so that no process waits until the first one offers its own.
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in lines]
    ports = [store.port for store in stores]
    texts = [[str(part) for part in line] for line in lines]
    logs = [folder / f"{count}-{rank}.txt" for rank in range(count)]
    processes = [
        FORKS.Process(target=_run_as, args=(texts, ports, rank, count, logs[rank], first)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    said = "\n".join(log.read_text() for log in logs)
    assert [process.exitcode for process in processes] == [status] * count, said
    return said


def _run_as(
    lines: Sequence[list[str]], ports: Sequence[int], rank: int, count: int, log: Path, first: Callable[[], None] | None
) -> None:
    import torch

    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if first:
        first()
    for line, port in zip(lines, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        main(line)


def _run(
    arguments: list[str], output: list[Path], environment: Mapping[str, str], first: Callable[[], None] | None
) -> None:
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environment)
    if first:
        first()
    import torch

    from ohem.__main__ import main as run

    torch.set_num_threads(1)

    sys.argv = ["ohem", *arguments]
    run()


def sentence(result: Result) -> str:
    """Returns the one sentence that bad input gets, and fails unless the exit status is 2."""
    lines = [line for line in result.err.splitlines() if line.startswith("ohem: ") and "warning:" not in line]
    assert result.code == 2, result
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    return lines[0].removeprefix("ohem: ")
