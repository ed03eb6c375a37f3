"""Trainings and their evaluations as commands of their own, several at once, each done only once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ohem.errors import InputError
from ohem.experiments.arms import shown
from ohem.files import digest_of_file, replacing
from ohem.locks import WAIT
from ohem.processes import PARENT
from ohem.training.metrics import NAME as METRICS
from ohem.training.signals import collect_signals

POLL_SECONDS = 0.2
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Job:
    """One run: its training, then its evaluations.

    Args:
        run: folder of the run.
        train: words of the training command.
        evaluations: file that an evaluation writes -> words of its command.
        made_of: digests of the data of both; with other data it is done anew.
    """

    run: Path
    train: Sequence[str]
    evaluations: Mapping[Path, Sequence[str]] = field(default_factory=dict)
    made_of: str = ""

    def left(self) -> list[Sequence[str]]:
        """The commands that have not been done yet, exactly as they are now."""
        due = [words for file, words in self.evaluations.items() if not self._done(file)]
        return [self.train, *due] if due else []

    def mark(self, words: Sequence[str]) -> None:
        """Remembers that the evaluation `words` is done."""
        for file in [file for file, each in self.evaluations.items() if each == words]:
            with replacing(_line_file(file)) as beside:
                beside.write_text(self._lines(file))

    def _done(self, file: Path) -> bool:
        line = _line_file(file)
        try:
            return file.exists() and line.read_text(encoding="utf-8") == self._lines(file)
        except (OSError, UnicodeDecodeError):  # one of the files is missing, or the mark is damaged
            return False

    def _lines(self, file: Path) -> str:
        """Both commands, and digests of their data and of what they wrote, by which damage to that is noticed."""
        written = [file if file.is_file() else None, self.run / METRICS]
        digests = [digest_of_file(path) for path in written if path is not None]
        return "\n".join([shown(self.train), shown(self.evaluations[file]), self.made_of, *digests, ""])


def run_jobs(jobs: Sequence[Job], parallel: int, first: Sequence[str]) -> None:
    """Does what is left of `jobs`, `parallel` of them at once; with one, its output is shown, else RUN.log has it.

    Args:
        jobs: what is to be done.
        parallel: how many at once.
        first: words of a command to be done before them, which makes what they share; none if empty.

    Raises:
        InputError: a command failed. The others are stopped, with their checkpoints written.
        SystemExit: with 128 + the signal's number, after SIGTERM or SIGINT; the same line goes on from there.
    """
    if parallel < 1:
        raise InputError(f"--jobs {parallel} runs nothing: give 1 or more")
    waiting = [job for job in jobs if job.left()]
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done already", flush=True)
    running: list[_Running] = []
    with collect_signals() as received:
        try:
            if waiting and first:
                run_line(first)
            while waiting or running:
                if received:
                    print(f"ohem: stopped by {signal.Signals(received[0]).name}; the same line goes on from there")
                    raise SystemExit(128 + received[0])
                while waiting and len(running) < parallel:
                    slot = min(set(range(parallel)) - {each.slot for each in running})
                    running.append(_Running(waiting.pop(0), parallel, slot))
                time.sleep(POLL_SECONDS)
                running = [each for each in running if received or each.goes_on()]
        finally:
            for each in running:
                each.stop()


def run_line(words: Sequence[str]) -> None:
    """Runs one command, whose output is shown; raises InputError if it fails."""
    print(f"{time.strftime('%H:%M')}  {shown(words)}", flush=True)
    status = subprocess.run(_command(words), check=False, env=_child_environment()).returncode
    if status:
        raise InputError(f"`{shown(words)}` ended with status {status}: mend that and repeat the line")


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "ohem", *words]


def _child_environment() -> dict[str, str]:
    """Of a command that ends with this process, and waits for what an earlier one, which was killed, left running."""
    return {**os.environ, PARENT: str(os.getpid()), WAIT: str(WAIT_SECONDS)}


class _Running:
    """A job under way, one of `parallel`: one command after the other."""

    def __init__(self, job: Job, parallel: int, slot: int) -> None:
        self.job, self.parallel, self.slot, self.left = job, parallel, slot, job.left()
        self.log = job.run.with_name(f"{job.run.name}.log") if parallel > 1 else None
        if self.log:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)
        self.process = self._start()

    def goes_on(self) -> bool:
        """Starts the next command if the present one has ended; False after the last."""
        status = self.process.poll()
        if status is None:
            return True
        if status:
            raise InputError(
                f"`{shown(self.left[0])}` ended with status {status}{self._last_words()}: mend that and repeat the line"
            )
        self.job.mark(self.left.pop(0))
        if self.left:
            self.process = self._start()
        return bool(self.left)

    def stop(self) -> None:
        """Ends it as a person would, and waits for its checkpoint."""
        self.process.terminate()
        self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        print(f"{time.strftime('%H:%M')}  {shown(self.left[0])}", flush=True)
        command = _command(self.left[0])
        if self.log is None:
            return subprocess.Popen(command, env=_child_environment())
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())

    def _environment(self) -> dict[str, str]:
        """A share of the cores, on which processes of several threads each would hold each other up, and one GPU."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {"OMP_NUM_THREADS": str(max(1, cores // self.parallel)), **_child_environment()}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        if "," in gpus:  # each job would take the first
            names = gpus.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = names[self.slot % len(names)]
        return environment

    def _last_words(self) -> str:
        if self.log is None:
            return ""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f" ({lines[-1].removeprefix('ohem: ')})" if lines else ""


def _line_file(file: Path) -> Path:
    return file.with_suffix(".line")
