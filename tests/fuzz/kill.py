"""Kills commands at random moments, repeats them until they end, and compares their files with undisturbed ones.

    python -m tests.fuzz.kill --kills 100 --seed 0

The commands are those that run long: train, propose, eval, detect and compare, as real processes on tiny data. Each is
started, killed (the process alone or its whole group, at random) at a moment within the time of the undisturbed
command, and started again. When it has ended by itself, or has been killed `CHAIN` times and then run to its end, its
files must be those of the undisturbed command: weights, optimizer, proposals, snapshots and losses bit for bit, and all
else except the seconds. No other file may be left, and five seconds after each kill no process of the command.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.commands import checkpoint_of, rows_of, without_seconds
from tests.helpers.datasets import make_voc
from tests.helpers.toy_data import make_toy, make_toy_coco, training, training_on

MARK = "OHEM_FUZZ_MARK"
CHAIN = 5
PICTURES = 40
GONE_SECONDS = 5.0
LIMIT_SECONDS = 180.0
# These files hold seconds or times of day.
NOT_COMPARED = (".log", ".html")


@dataclass(frozen=True)
class Scenario:
    """Describes a command and its input.

    Args:
        arguments: Returns the arguments of the command, given the folder.
        prepare: Makes the input of the command in the folder.
        setup: Commands that run first, undisturbed.
    """

    arguments: Callable[[Path], Sequence[object]]
    prepare: Callable[[Path], object]
    setup: Callable[[Path], Sequence[Sequence[object]]] = lambda _: ()


def _toy(folder: Path) -> None:
    make_toy(folder / "data")


def make_pictures(folder: Path, count: int = PICTURES) -> None:
    """Makes images that keep selective search busy for some seconds."""
    stems = [f"{i:02}" for i in range(count)]
    make_voc(folder / "data", {stem: (150, 200, [("a", 5, 5, 60, 60, 0)]) for stem in stems}, {"train": stems})
    random = np.random.default_rng(1)
    for path in sorted((folder / "data/JPEGImages").iterdir()):  # noise alone gives no regions
        coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((200, 150), Image.Resampling.BICUBIC).save(path)


def _tested(folder: Path) -> None:
    """Makes toy data with more images to test on."""
    make_toy(folder / "data", {"train": "abcdef", "test": [f"t{i:02}" for i in range(60)]})


def _coco(folder: Path) -> None:
    make_toy_coco(folder / "coco")


def _on_coco(folder: Path) -> list[str]:
    return [f"{folder / 'coco' / split}.json:{folder / 'coco/images'}" for split in ("train", "test")]


def _train(folder: Path) -> list[object]:
    every = ["--run.log-every", 1, "--run.checkpoint-every", 5, "--run.snapshot-every", 10, "--run.loss-every", 10]
    return ["train", folder / "run", *training(folder / "data", steps=60), *every]


def _short_training(folder: Path) -> list[object]:
    return ["train", folder / "run", *training(folder / "data", steps=20), "--test.score", 0.01]


def _compare(folder: Path) -> list[object]:
    data = folder / "data"
    return [
        *["compare", folder / "out", "--recipe", "demo-frcn", "--methods", "frcn", "ohem", "--seeds", 1, "--jobs", 2],
        *["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--data.short", 64, "--data.long", 80],
        *["--solver.steps", 30, "--run.accelerator", "cpu", "--proposals.jobs", 1],
        *["--run.checkpoint-every", 5, "--run.log-every", 1],
    ]


def _training_on_many(folder: Path) -> list[object]:
    return ["train", folder / "run", *training(folder / "data", steps=2, test=None)]


def _detect(folder: Path) -> list[object]:
    images = [folder / "data" / "JPEGImages" / f"{i:02}.png" for i in range(PICTURES)]
    return ["detect", folder / "run", *images, "--jobs", 2, "--out", folder / "out"]


SCENARIOS: dict[str, Scenario] = {
    "train": Scenario(_train, _toy),
    "propose": Scenario(lambda folder: ["propose", f"{folder / 'data'}:train", "--jobs", 2], make_pictures),
    "eval": Scenario(
        lambda folder: ["eval", folder / "run", "--loss"], _tested, lambda folder: [_short_training(folder)]
    ),
    "eval --submit": Scenario(
        lambda folder: ["eval", folder / "run", "--submit", folder / "submitted"],
        _tested,
        lambda folder: [_short_training(folder)],
    ),
    "eval on COCO": Scenario(
        lambda folder: ["eval", folder / "run"],
        _coco,
        lambda folder: [["train", folder / "run", *training_on(*_on_coco(folder), steps=20), "--test.score", 0.01]],
    ),
    "detect": Scenario(_detect, make_pictures, lambda folder: [_training_on_many(folder)]),
    "compare": Scenario(_compare, _toy),
}
# Shares of the kills; the commands that do most get most.
SHARES = {
    "train": 0.25,
    "propose": 0.15,
    "detect": 0.1,
    "eval": 0.12,
    "eval --submit": 0.08,
    "eval on COCO": 0.08,
    "compare": 0.22,
}


# Remaining files


def contents(folder: Path, *, previous: bool) -> dict[str, Any]:
    """Returns file -> content that must be equal; checkpoints before the newest only if `previous`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and (previous or "previous" not in path.name)]
    return {str(path.relative_to(folder)): _content(path) for path in paths}


def _content(path: Path) -> Any:
    if path.suffix in NOT_COMPARED:
        return None
    try:
        if path.suffix == ".pt":
            return checkpoint_of(path)
        if path.name == "metrics.csv":
            return rows_of(path)
        if path.suffix == ".line":
            return path.read_text().splitlines()[:3]  # the rest are digests of files that hold seconds
        if path.suffix == ".json":
            return without_seconds(json.loads(path.read_text()))
    except Exception as error:  # noqa: BLE001  a broken file is a finding, not the end
        return f"cannot be read: {error}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(ours: dict[str, Any], undisturbed: dict[str, Any]) -> list[str]:
    """Returns a line for each file that is missing or different in one of the two."""
    lines = [f"{name} is left over" for name in ours if name not in undisturbed]
    lines += [f"{name} is missing" for name in undisturbed if name not in ours]
    return lines + [f"{name} differs" for name in ours if name in undisturbed and ours[name] != undisturbed[name]]


def processes(mark: str) -> dict[int, str]:
    """Returns process id -> command line of the living processes that have the mark in their environment."""
    living = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    living[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:  # it has ended
            continue
    return living


# Kills


@dataclass
class Killer:
    """Runs one scenario.

    Args:
        name: Name of the scenario.
        place: The command always runs in the folder `place`/case, since runs store the paths of their data.
        signum: The signal to send.
        random: Decides the moment and the processes.
    """

    name: str
    place: Path
    signum: signal.Signals
    random: Random
    kills: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scenario = SCENARIOS[self.name]
        self.folder, self.whole = self.place / "case", self.place / "whole"
        self.output = self.place / "output"
        self.folder.mkdir(parents=True)
        self.scenario.prepare(self.folder)
        for arguments in self.scenario.setup(self.folder):
            self._undisturbed(arguments)
        shutil.copytree(self.folder, self.whole)
        self.begins, self.seconds = self._time()
        self.expected = self._contents()

    def _contents(self) -> dict[str, Any]:
        return contents(self.folder, previous=self.signum == signal.SIGKILL)

    def _start(self, arguments: Sequence[object]) -> tuple[subprocess.Popen[bytes], str]:
        mark = uuid.uuid4().hex
        environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark}
        line = [sys.executable, "-m", "ohem", *map(str, arguments)]
        with self.output.open("wb") as output:
            process = subprocess.Popen(line, stdout=output, stderr=output, env=environment, start_new_session=True)
        return process, mark

    def _undisturbed(self, arguments: Sequence[object]) -> bool:
        """Runs a command to its end; returns whether it succeeded."""
        process, _ = self._start(arguments)
        try:
            status = process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        return status == 0

    def _time(self) -> tuple[float, float]:
        """Returns the seconds to the first file that the undisturbed command writes, and to its end."""
        before = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}
        started, begins = time.monotonic(), 0.0
        process, _ = self._start(self.scenario.arguments(self.folder))
        while process.poll() is None:
            if not begins and _changed(self.folder, before):
                begins = time.monotonic() - started
            time.sleep(0.01)
        assert process.returncode == 0, self.output.read_text()
        return begins, time.monotonic() - started

    def chain(self, kills: int) -> None:
        """Starts from complete files, kills the command up to `kills` times, lets it end and compares."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.whole, self.folder)
        done: list[str] = []
        for _ in range(kills):
            if self._ended_before(done):
                break
        else:
            if not self._undisturbed(self.scenario.arguments(self.folder)):
                self._fault(done, f"does not resume: {self._said()}")
                return
        for line in differences(self._contents(), self.expected):
            self._fault(done, line)

    def _ended_before(self, done: list[str]) -> bool:
        """Starts the command and kills it; returns whether it had ended before."""
        first = 0.0 if self.random.random() < 0.2 else self.begins * 0.9
        moment, group = self.random.uniform(first, self.seconds), self.random.random() < 0.5
        process, mark = self._start(self.scenario.arguments(self.folder))
        try:
            status = process.wait(moment)
        except subprocess.TimeoutExpired:
            (os.killpg if group else os.kill)(process.pid, self.signum)
            self.kills += 1
            done.append(f"{moment:.2f} s{', the group' if group else ''}")
            self._wait(process, mark, done)
            return False
        if status:
            self._fault(done, f"ended with status {status}: {self._said()}")
        return True

    def _wait(self, process: subprocess.Popen[bytes], mark: str, done: list[str]) -> None:
        """Waits until no process of the command is left."""
        deadline = time.monotonic() + GONE_SECONDS
        while time.monotonic() < deadline and (process.poll() is None or processes(mark)):
            time.sleep(0.02)
        left = processes(mark)
        if left:
            self._fault(done, f"{len(left)} processes are left: {', '.join(line[-100:] for line in left.values())}")
        for number in left:
            os.kill(number, signal.SIGKILL)
        process.wait()
        said = self._said()
        if "Traceback" in self.output.read_text(errors="replace"):
            self._fault(done, f"a traceback: {said}")

    def _fault(self, done: Sequence[str], what: str) -> None:
        self.faults.append(f"{self.name}, killed after {'; '.join(done) or 'no time'}: {what}")
        print(f"FAULT {self.faults[-1]}", flush=True)

    def _said(self) -> str:
        return " / ".join(self.output.read_text(errors="replace").strip().splitlines()[-3:])


def _changed(folder: Path, before: dict[Path, int]) -> bool:
    try:
        return any(before.get(path) != path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file())
    except OSError:  # a file that was renamed meanwhile
        return True


def run(names: Sequence[str], kills: int, seed: int, signum: signal.Signals = signal.SIGKILL) -> list[str]:
    """Kills commands of the scenarios `names` as often as given; returns the faults."""
    faults: list[str] = []
    shares = sum(SHARES[name] for name in names)
    for name in names:
        due = max(1, round(kills * SHARES[name] / shares))
        with tempfile.TemporaryDirectory() as folder:
            killer, started = Killer(name, Path(folder).resolve(), signum, Random(f"{seed} {name}")), time.monotonic()
            took = f"{killer.seconds:.1f} s, {killer.begins:.1f} s to its first file"
            print(f"{name}: the undisturbed command takes {took}", flush=True)
            chains = 0
            while killer.kills < due:
                killer.chain(min(killer.random.randint(1, CHAIN), due - killer.kills))
                chains += 1
            seconds = time.monotonic() - started
            print(
                f"{name}: {killer.kills} kills, then ended {chains} times, {len(killer.faults)} faults, {seconds:.0f} s"
            )
            faults += killer.faults
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scenarios; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="scenario; may be given several times")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    options = parser.parse_args(arguments)
    signum = signal.Signals[f"SIG{options.signal}"]
    faults = run(options.only or list(SCENARIOS), options.kills, options.seed, signum)
    print(f"{len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
