"""Options and reports that the benchmarks share."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import STARTED
from ohem.bench.report import machine
from ohem.config.methods import replace_options
from ohem.config.schema import Recipe
from ohem.errors import InputError
from ohem.io.json_files import write_json


def make_parser(description: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the options of all benchmarks, and `--rounds` if it has a default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="data set, FOLDER:SPLIT, ANNOTATIONS.json:IMAGES or data.yaml:SPLIT"
    )
    parser.add_argument("--proposals", help="folder of the cached proposals (default: next to the data)")
    parser.add_argument("--mode", default="fast", choices=["fast", "quality"], help="mode of selective search")
    parser.add_argument("--short", type=int, default=600, help="short side of the images in pixels")
    parser.add_argument("--long", type=int, default=1000, help="maximum long side of the images in pixels")
    return _add_common(parser, rounds)


def make_parser_without_data(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser for a benchmark that makes its own input."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    return _add_common(parser, rounds)


def _add_common(parser: argparse.ArgumentParser, rounds: int | None) -> argparse.ArgumentParser:
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="number of measurements of each method")
    return parser


def as_recipe(options: argparse.Namespace, recipe: Recipe = Recipe()) -> Recipe:  # noqa: B008  # it is frozen
    """Returns `recipe` with the image sizes and proposals of `options`."""
    size = {"short": options.short, "long": options.long}
    return replace_options(recipe, data=size, proposals={"folder": options.proposals, "mode": (options.mode,)})


def parse_with_more(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Returns the arguments before `--`, and those after it as `options`: argparse refuses these after others."""
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    parsed = parser.parse_args(given[:end])
    parsed.options = given[end + 1 :]
    return parsed


def run_main(main: Callable[[], None]) -> None:
    """Calls `main`; prints the message of an `InputError` and exits with status 2.

    A command that fails has said why, and its status is that of this one.
    """
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)


def announce(text: str) -> None:
    """Prints on standard error what is measured next."""
    print(text, file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """Prints a table; in a file it is wide enough for the names of all methods."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def write_report(out: Path | None, report: dict[str, Any]) -> None:
    """Writes the report, the seconds so far and a description of the machine as JSON; nothing if `out` is None."""
    if out is not None:
        own = {"machine": machine(), "threads": torch.get_num_threads(), "benchmark_seconds": perf_counter() - STARTED}
        write_json(out, {**own, **report})


def seconds_in_turns(methods: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Measures the seconds of each method, in turns after one round of warm-up: median, lowest, highest."""
    announce(f"measuring {', '.join(methods)}: {rounds} rounds after one of warm-up")
    for method in methods.values():
        method()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            started = perf_counter()
            method()
            seconds[name].append(perf_counter() - started)
    return {
        name: {"median": median(values), "lowest": min(values), "highest": max(values)}
        for name, values in seconds.items()
    }
