"""Damages files of every kind that the program reads, and judges the commands that read them.

    python -m tests.fuzz.files --cases 500 --seed 0

Every case is a copy of the same small world (data, runs, caches), one damage to one file, and the commands that read
it:

    ok-sentence  exit status 2 with one sentence that names the file or its folder
    ok-same      exit status 0, and the result is that of the undamaged file
    ok-said      exit status 0, a different result, and a note that names the file or its folder
    ok-valid     exit status 0, and a different result that is right: the damaged file is valid (see oracle.py)
    VAGUE        exit status 2 without such a sentence, or with several
    SILENT       exit status 0, a different result, and no note
    TRACEBACK    an exception reached the top, or the process died or hung

The exit status is 1 if there is a TRACEBACK or SILENT. A case is a function of (seed, number): --case repeats one.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.fuzz import oracle
from tests.fuzz.commands import COMMANDS, Outcome, Result
from tests.fuzz.damage import damage, difference, remove
from tests.fuzz.isolation import Died, Run, here, in_a_child, modules_after
from tests.fuzz.world import KINDS, Kind, World

VERDICTS = ("ok-sentence", "ok-same", "ok-said", "ok-valid", "VAGUE", "SILENT", "TRACEBACK")
FAULTS = ("SILENT", "TRACEBACK")
DATA = ("voc", "ready", "partial", "coco", "yolo", "negatives", "boxes", "run", "coco-run")


@dataclass(frozen=True)
class Case:
    """Holds one damage, one command, and the verdict."""

    number: int
    kind: str
    file: str
    done: str
    command: str
    verdict: str
    output: str

    def __str__(self) -> str:
        lines = "\n".join(f"      {line}" for line in self.output.strip().splitlines()[-12:])
        return f"{self.verdict}  --case {self.number}  {self.file}: {self.done}; `{self.command}`\n{lines}"


class Fuzzer:
    """Runs cases in a world.

    Args:
        world: Holds the undamaged files.
        run: Calls a function, in its own process or in this one.
        seed: The seed of all cases.
    """

    def __init__(self, world: World, run: Run, seed: int) -> None:
        self.world, self.run, self.seed = world, run, seed
        self._undamaged: dict[tuple[Any, str], Result] = {}

    def case(self, number: int, names: Sequence[str], only: str | None = None) -> Iterator[Case]:
        """Runs the case `number` of the kinds `names`; returns a verdict for each command that reads the file.

        Args:
            number: number of the case.
            names: names of the kinds.
            only: the one command to run; None for all.
        """
        name = names[number % len(names)]
        kind, random = KINDS[name], Random(f"{self.seed} {number} {name}")
        state = random.getstate()
        for command in [only] if only else kind.commands:
            self.undamaged(kind, command)
            random.setstate(state)
            path = self._prepared(kind, command, random)
            others = [file for file in self.world.examples if file.suffix != path.suffix or random.random() < 0.5]
            done = damage(path, others, random)
            kept = self._keep(path)
            if kept:
                whole = self.world.base / path.relative_to(self.world.case)
                done += f", {difference(whole.read_bytes(), kept.read_bytes())}"
            result = self._run(command)
            verdict = self._verdict(name, command, path, kept, result)
            output = "\n".join([result.trace, result.err, *result.warned]).strip() or "(nothing was said)"
            yield Case(number, name, str(path.relative_to(self.world.case)), done, command, verdict, output)

    def undamaged(self, kind: Kind, command: str) -> Result:
        """Returns the result with undamaged files."""
        key = (kind.prepare, command)
        if key not in self._undamaged:
            self._prepared(kind, command, Random(0))
            self._undamaged[key] = self._run(command)
            assert self._undamaged[key].code == 0, (command, self._undamaged[key])
        return self._undamaged[key]

    def _prepared(self, kind: Kind, command: str, random: Random) -> Path:
        """Returns the file to damage in a fresh copy of the world."""
        self.world.reset(kind, command)
        return random.choice(kind.files(self.world.case))

    def _run(self, command: str) -> Result:
        try:
            return self.run(COMMANDS[command], self.world.case)
        except Died as error:
            return Result(code=1, trace=str(error))

    def _verdict(self, name: str, command: str, path: Path, kept: Path | None, result: Result) -> str:
        expected, names = self.undamaged(KINDS[name], command), _names(path, self.world.case, name)
        if result.trace or "Traceback" in result.err or result.code not in (0, 2):
            return "TRACEBACK"
        if result.code == 2:
            lines = [line for line in result.err.splitlines() if line.startswith("ohem: ") and "warning:" not in line]
            return "ok-sentence" if len(lines) == 1 and any(one in lines[0] for one in names) else "VAGUE"
        if result.outcome == expected.outcome:
            return "ok-same"
        if any(one in note for note in _notes(result, expected) for one in names):
            return "ok-said"
        return "ok-valid" if kept and self._is_valid(name, command, path, kept, result.outcome) else "SILENT"

    def _is_valid(self, name: str, command: str, path: Path, kept: Path, outcome: Outcome) -> bool:
        """Returns whether the damaged file, of which `kept` is a copy, is valid and the program used its content."""
        kind, place = KINDS[name], path.relative_to(self.world.case)
        if name == "recipe.yaml":
            return oracle.edited_settings(self.world.base / place, kept)
        if name == "caffemodel":
            return oracle.says_caffe(kept, outcome["weights"])
        if not kind.own or command.startswith("resume"):  # the name of a run also names its data
            return False
        self.world.reset(kind, command)
        try:
            oracle.rewrite(kept, path)
        except oracle.Nonsense:
            return False
        for cache in [*self.world.case.glob(f"{place.parts[0]}/**/Proposals")]:
            remove(cache)
        return self._run(command).outcome == outcome

    def _keep(self, path: Path) -> Path | None:
        """Copies a damaged file, since the command may write it again."""
        if not path.is_file():
            return None
        kept = self.world.case.with_name(f"damaged{path.suffix}")
        kept.write_bytes(path.read_bytes())
        return kept


def _names(path: Path, world: Path, kind: str) -> list[str]:
    """Returns the names by which a sentence may name the file: itself, its folder, its data set or its run."""
    place = path.relative_to(world)
    names = [str(path), *([str(path.parent)] if len(place.parts) > 1 else [])]
    if place.parts[0] in DATA:
        names.append(str(world / place.parts[0]))
    return [
        *names,
        *(["--"] if kind == "config" else []),
    ]  # the name of the option is enough for a value that --config sets


def _notes(result: Result, expected: Result) -> list[str]:
    """Returns the notes that do not appear with undamaged files."""
    lines = [line for line in (result.out + result.err).splitlines() if "`ohem" not in line and "  ohem " not in line]
    before = {*expected.warned, *(expected.out + expected.err).splitlines()}
    return [line for line in [*result.warned, *lines] if line not in before]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and prints them as a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="kind of file; may be given several times")
    parser.add_argument("--case", type=int, help="repeat this one")
    parser.add_argument("--here", action="store_true", help="in this process, for a debugger")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    numbers = range(options.cases) if options.case is None else [options.case]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve())
        if options.here:
            world.make()
        else:
            modules_after(world.make)
        fuzzer = Fuzzer(world, here if options.here else in_a_child, options.seed)
        cases = []
        for number in numbers:
            cases += fuzzer.case(number, options.only or world.kinds)
            if number % 50 == 49:
                print(f"{number + 1} cases, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    report(cases)
    return int(any(case.verdict in FAULTS for case in cases))


def report(cases: Sequence[Case]) -> None:
    """Prints the failed cases, and a table of all."""
    for case in cases:
        if case.verdict not in VERDICTS[:4]:
            print(case, end="\n\n")
    counts = Counter((case.kind, case.verdict) for case in cases)
    table = Table("kind", *VERDICTS, title="commands run on damaged files")
    for kind in dict.fromkeys(case.kind for case in cases):
        table.add_row(kind, *(str(counts[kind, verdict] or "") for verdict in VERDICTS))
    table.add_section()
    table.add_row("all", *(str(sum(counts[kind, verdict] for kind in KINDS)) for verdict in VERDICTS))
    Console(width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
