"""Runs trainings and their evaluations as separate commands, several at the same time, and each of them only once.

They run on this machine, or on the workers of a Dask cluster that sees the same folders.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import fmean
from uuid import uuid4

import torch

from ohem.cluster import executor_on, result_of
from ohem.errors import InputError
from ohem.evaluation.map_curve import NAME as MAP_CURVE
from ohem.evaluation.report import read_report
from ohem.experiments.commands import format_command
from ohem.io.digests import digest_of_file
from ohem.io.files import atomic_write
from ohem.io.locks import WAIT
from ohem.io.numbers import format_number
from ohem.io.progress import LineClock
from ohem.processes import PARENT, collect_signals
from ohem.training.logs.metrics_log import NAME as METRICS

POLL_SECONDS = 0.2
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """One run: its training, then its evaluations.

    Args:
        run: folder of the run.
        train: arguments of the training command.
        evaluations: file that an evaluation writes -> arguments of its command.
        data_digest: digests of the data of training and test; with other data the run is done again.
        observing: more arguments of the training command, which do not change its results. With others, nothing is done
            again.
    """

    run: Path
    train: Sequence[str]
    evaluations: Mapping[Path, Sequence[str]] = field(default_factory=dict)
    data_digest: str = ""
    observing: Sequence[str] = ()

    @property
    def train_command(self) -> list[str]:
        """All arguments of the training command."""
        return [*self.train, *self.observing]

    def remaining(self) -> list[Sequence[str]]:
        """Returns the commands that are not done yet with the same arguments, data and results.

        A training without evaluations is always repeated, which takes seconds where it is complete.
        """
        due = [arguments for file, arguments in self.evaluations.items() if not self._is_done(file)]
        return [self.train_command, *due] if due or not self.evaluations else []

    def mark_done(self, arguments: Sequence[str]) -> None:
        """Records on disk that the evaluation with these arguments is done."""
        for file in [file for file, evaluation in self.evaluations.items() if evaluation == arguments]:
            with atomic_write(_mark_file(file)) as temporary:
                temporary.write_text(self._mark(file))

    def maps(self) -> list[float]:
        """Returns the mAP of each evaluation that has one."""
        files = [file for file in self.evaluations if file.suffix == ".json" and file.name != MAP_CURVE]
        reports = [read_report(file) for file in files if file.is_file()]
        return [report["map"] for report in reports if report["map"] is not None]

    def _is_done(self, file: Path) -> bool:
        mark = _mark_file(file)
        try:
            return file.exists() and mark.read_text(encoding="utf-8") == self._mark(file)
        except (OSError, UnicodeDecodeError):  # one of the files is missing, or the mark is damaged
            return False

    def _mark(self, file: Path) -> str:
        """Returns both commands, and digests of their data and results, so that a change of these is noticed."""
        results = [file if file.is_file() else None, self.run / METRICS]
        digests = [digest_of_file(path) for path in results if path is not None]
        commands = [format_command(self.train), format_command(self.evaluations[file])]
        return "\n".join([*commands, self.data_digest, *digests, ""])


@dataclass
class Progress:
    """Counts finished runs and estimates the time left.

    Args:
        total: number of all runs.
        parallel: number of runs at the same time.
        finished: number of runs that need nothing more.
        durations: seconds of the runs that finished since the command began.
    """

    total: int
    parallel: int
    finished: int = 0
    durations: list[float] = field(default_factory=list)

    def finish(self, seconds: float) -> None:
        """Counts a run that took `seconds`."""
        self.finished += 1
        self.durations.append(seconds)

    def seconds_left(self, elapsed: Sequence[float]) -> float:
        """Estimates the seconds until all runs are finished, if the others take as long as the finished ones did.

        Args:
            elapsed: seconds since the start of each run that is under way.

        Raises:
            statistics.StatisticsError: no run has finished yet.
        """
        usual = fmean(self.durations)
        unfinished = self.total - self.finished
        started = sum(max(usual - seconds, 0.0) for seconds in elapsed)
        work = (unfinished - len(elapsed)) * usual + started
        return work / max(1, min(self.parallel, unfinished))

    def describe(self, name: str, maps: Sequence[float], elapsed: Sequence[float]) -> str:
        """Returns the line for the run `name` that has just finished: "ohem-1: mAP 71.2 (3 of 6 runs, ...)".

        Args:
            name: name of the run.
            maps: mAP of each of its evaluations; may be empty.
            elapsed: seconds since the start of each run that is under way.
        """
        result = f"mAP {', '.join(map(format_number, maps))}" if maps else "done"
        left = f", {format_time_left(self.seconds_left(elapsed))}" if self.finished < self.total else ""
        return f"{name}: {result} ({self.finished} of {self.total} runs{left})"


def format_time_left(seconds: float) -> str:
    """Formats an estimate: "less than 1 min left", "about 7 min left", "about 2 h 10 min left"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than 1 min left"
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes} min left" if hours else f"about {minutes} min left"


def run_jobs(jobs: Sequence[Job], parallel: int, first: Sequence[str], cluster: str | None = None) -> None:
    """Runs what remains of `jobs`, and prints one line for each run that is done.

    With one job at a time the output of its commands is printed; with several, it is in the file RUN.log of each, and
    the last line of each is printed to standard error every few seconds.

    Args:
        jobs: the runs.
        parallel: number of runs at the same time.
        first: arguments of a command to run before them, which makes what they share; none if empty.
        cluster: address of a Dask scheduler whose workers do the jobs, as `executor_on` takes it.

    Raises:
        InputError: a command failed. The others are stopped, with their checkpoints written.
        SystemExit: after SIGTERM or SIGINT, with 128 + the number of the signal; repeating the command continues.
    """
    if parallel < 1:
        raise InputError(f"--jobs {parallel} runs nothing: give 1 or more")
    waiting = [job for job in jobs if job.remaining()]
    progress = Progress(len(jobs), parallel, finished=len(jobs) - len(waiting))
    if progress.finished:
        print(f"{progress.finished} of {progress.total} runs are done already", flush=True)
    if not waiting:
        return
    with collect_signals() as received, _places(waiting[0].run, parallel, cluster) as places:
        if first:
            run_command([*first, "--cluster", cluster] if cluster else first)
        if places.logged:
            print(f"the output of each run is in its log file, such as {_log_file(waiting[0].run)}", flush=True)
        _run_all(waiting, places, progress, received)


def _run_all(waiting: list[Job], places: "_Places", progress: Progress, received: Sequence[int]) -> None:
    running: list[_RunningJob] = []
    clock = LineClock()
    try:
        while waiting or running:
            if received:
                print(f"ohem: stopped by {signal.Signals(received[0]).name}: repeat the command to continue")
                raise SystemExit(128 + received[0])
            while waiting and len(running) < places.count:
                running.append(places.start(waiting.pop(0), {job.slot for job in running}))
            wait([job.future for job in running], POLL_SECONDS, FIRST_COMPLETED)
            if not received:
                running = _advance(running, progress)
                _print_news(running, clock)
    finally:
        places.stop.touch()
        wait([job.future for job in running])


def run_command(arguments: Sequence[str]) -> None:
    """Runs one command with its output printed; raises `InputError` if it fails."""
    _print_with_time(format_command(arguments))
    status = subprocess.run(_python_command(arguments), check=False, env=_child_environment()).returncode
    if status:
        raise InputError(_describe_failure(arguments, status))


def _describe_failure(arguments: Sequence[str], status: int, reason: str = "") -> str:
    return f"`{format_command(arguments)}` ended with status {status}{reason}: correct that and repeat the command"


def _print_with_time(text: str) -> None:
    print(f"{time.strftime('%H:%M')}  {text}", flush=True)


def _python_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "ohem", *arguments]


def _child_environment() -> dict[str, str]:
    """Returns variables by which a command ends with this process, and waits for one left by a killed process."""
    return {**os.environ, PARENT: str(os.getpid()), WAIT: str(WAIT_SECONDS)}


class _Places:
    """Threads of this process, or workers of Dask, that do jobs.

    Args:
        executor: it runs functions there.
        count: number of jobs that it is given at a time.
        local: whether the jobs run on this machine, which they share.
        stop: a file that all of them see; once it exists, the jobs end, with their checkpoints written.
    """

    def __init__(self, executor: Executor, count: int, local: bool, stop: Path) -> None:
        self.executor, self.count, self.local, self.stop = executor, count, local, stop

    @property
    def logged(self) -> bool:
        """Whether the output of a job is in its log file."""
        return self.count > 1 or not self.local

    def start(self, job: Job, used: Container[int]) -> "_RunningJob":
        """Starts `job`; `used` are the slots of those that run."""
        slot = next(slot for slot in count() if slot not in used)
        log = _log_file(job.run).absolute() if self.logged else None
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        environment = _share_of_machine(self.count, slot) if self.local and self.logged else {}
        future = self.executor.submit(_do, _with_whole_paths(job), log, self.stop, environment, Path.cwd())
        return _RunningJob(job, slot, log, future)


@contextmanager
def _places(run: Path, parallel: int, cluster: str | None) -> Iterator[_Places]:
    folder = run.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    stop = folder / f".stop-{uuid4().hex}"
    try:
        if cluster is None:
            with ThreadPoolExecutor(parallel) as threads:
                yield _Places(threads, parallel, True, stop)
        else:
            with executor_on(cluster, parallel) as workers:
                yield _Places(workers, sys.maxsize, False, stop)
    finally:
        stop.unlink(missing_ok=True)


def _with_whole_paths(job: Job) -> Job:
    """Returns `job` for a process in another folder. The arguments of the commands stay, since marks have them."""
    evaluations = {file.absolute(): arguments for file, arguments in job.evaluations.items()}
    return replace(job, run=job.run.absolute(), evaluations=evaluations)


def _do(job: Job, log: Path | None, stop: Path, environment: Mapping[str, str], folder: Path) -> str:
    """Runs the remaining commands of `job` in `folder`; returns why it failed, or "" if it did not."""
    for arguments in job.remaining():
        if stop.exists():
            break
        _print_with_time(format_command(arguments))
        status = _run_until(stop, arguments, log, {**_child_environment(), **environment}, folder)
        if stop.exists():
            return ""
        if status:
            line = _last_line(log).removeprefix("ohem: ")
            return _describe_failure(arguments, status, f" ({line})" if line else "")
        job.mark_done(arguments)
    return ""


def _run_until(
    stop: Path, arguments: Sequence[str], log: Path | None, environment: Mapping[str, str], folder: Path
) -> int:
    """Runs a command; once the file `stop` exists, sends SIGTERM and waits until it has written its checkpoint."""
    with log.open("ab") if log else nullcontext() as output:
        process = subprocess.Popen(
            _python_command(arguments), stdout=output, stderr=output, env=dict(environment), cwd=folder
        )
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.exists():
                process.terminate()
                return process.wait()


def _share_of_machine(jobs: int, slot: int) -> dict[str, str]:
    """Returns variables that give a job one GPU and its share of the cores.

    Processes with more threads than cores slow each other down.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if "," in gpus:  # otherwise every job would take the first
        names = gpus.split(",")
        environment["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    return environment


class _RunningJob:
    """A job under way."""

    def __init__(self, job: Job, slot: int, log: Path | None, future: "Future[str]") -> None:
        self.job, self.slot, self.log, self.future = job, slot, log, future
        self.news = ""
        self._begun: float | None = None if log else time.monotonic()

    @property
    def begun(self) -> float | None:
        """Time when it was seen to run; None while it waits for a worker."""
        if self._begun is None and self.log and self.log.exists():
            self._begun = time.monotonic()
        return self._begun

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return 0.0 if self.begun is None else time.monotonic() - self.begun

    def print_news(self) -> None:
        """Prints the last line of the log to standard error, if it is another than the last time."""
        line = _last_line(self.log)
        if line != self.news and not line.startswith(" "):  # not a hint, which a run prints at its end
            print(f"{self.job.run.name}: {line}", file=sys.stderr, flush=True)
            self.news = line


def _last_line(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _advance(running: Sequence[_RunningJob], progress: Progress) -> list[_RunningJob]:
    """Prints a line for each run that is done, and returns the others; raises `InputError` if one failed."""
    unfinished = [job for job in running if not job.future.done()]
    elapsed = [job.seconds for job in unfinished if job.begun is not None]
    progress.parallel = max(progress.parallel, len(elapsed))  # workers of a cluster are counted when they begin
    for job in running:
        if job not in unfinished:
            failure = result_of(job.future)
            if failure:
                raise InputError(failure)
            progress.finish(job.seconds)
            _print_with_time(progress.describe(job.job.run.name, job.job.maps(), elapsed))
    return unfinished


def _print_news(running: Sequence[_RunningJob], clock: LineClock) -> None:
    """Prints the progress of the jobs if it is time for it."""
    if clock.is_due():
        for job in running:
            job.print_news()


def _log_file(run: Path) -> Path:
    return run.with_name(f"{run.name}.log")


def _mark_file(file: Path) -> Path:
    return file.with_suffix(".line")
