"""What the benchmarks share: options and the report."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ohem.errors import InputError
from ohem.experiments.bench.report import machine
from ohem.files import replacing
from ohem.training.config import Recipe
from ohem.training.variants import vary


def parser(description: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """Options that all of them have; `--rounds` where it has a default."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", required=True, help="FOLDER:SPLIT or ANNOTATIONS.json:IMAGES")
    found.add_argument("--proposals", help="folder of the caches; beside the data if left out")
    found.add_argument("--mode", default="fast", choices=["fast", "quality"], help="of selective search")
    found.add_argument("--short", type=int, default=600, help="short side of the images, in pixels")
    found.add_argument("--long", type=int, default=1000, help="highest long side")
    found.add_argument("--out", type=Path, help="JSON file")
    if rounds is not None:
        found.add_argument("--rounds", type=int, default=rounds)
    return found


def as_recipe(options: argparse.Namespace, recipe: Recipe = Recipe()) -> Recipe:  # noqa: B008  # it is frozen
    """`recipe` with the sizes and proposals of `options`."""
    size = {"short": options.short, "long": options.long}
    return vary(recipe, data=size, proposals={"folder": options.proposals, "mode": options.mode})


def run(main: Callable[[], None]) -> None:
    """Calls `main`; what its input does not allow is told in a sentence, with exit status 2."""
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def show(table: Table) -> None:
    """Prints it, in a file wide enough for every arm's name."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def write(out: Path | None, report: dict[str, Any]) -> None:
    """The report and the machine, as JSON."""
    if out is not None:
        with replacing(out) as beside:
            beside.write_text(
                json.dumps({"machine": machine(), "threads": torch.get_num_threads(), **report}, indent=2)
            )


def seconds_in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each way, done in turns after one round to warm up: median, lowest, highest."""
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = perf_counter()
            way()
            taken[name].append(perf_counter() - started)
    return {name: {"median": median(each), "lowest": min(each), "highest": max(each)} for name, each in taken.items()}
