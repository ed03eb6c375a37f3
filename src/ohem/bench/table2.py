"""`ohem bench`: measures seconds and memory of training with and without mining (table 2 of the paper)."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ohem.bench.measure import Measurement, measure
from ohem.bench.methods import BACKBONES, BENCH_METHODS, BenchMethod, method_recipe
from ohem.bench.report import machine, rois_seen, summarise, table
from ohem.bench.worker import Make
from ohem.bench.workload import training_workload
from ohem.config.methods import replace_options
from ohem.config.paper import TABLE2
from ohem.config.schema import BackboneName, Recipe
from ohem.config.validation import check_recipe
from ohem.errors import InputError
from ohem.inputs.datasets import training_data
from ohem.inputs.proposals import build_proposals
from ohem.io.console import make_console
from ohem.io.json_files import write_json

NOTE = """\
s/step: seconds of a whole training step, median (lowest-highest). CPU s: CPU seconds of all cores together, which other
programs disturb less. ratio: to frcn (ohem-accumulate: to frcn-accumulate), of seconds in the same round, median
(lowest-highest). built, peak: memory before the first step, and the highest; on a CPU the resident set of the process
with interpreter and libraries, on a GPU the memory of torch's allocator. GB: 10^9 bytes. paper: Caffe on a Titan X."""
# Options of a training that the benchmark replaces or does not use.
NOT_FOR_BENCH = {
    "model.backbone": "give --backbones",
    "model.implementation": "give --methods",
    "model.rescore_top": "give --methods",
    "sampler.name": "give --methods",
    "solver.accumulate": "give --methods",
    "solver.steps": "give --steps",
    "run.devices": "every method is one process, so leave it out",
    "data.workers": "images are read between the measured steps, so leave it out",
}


def run_bench(
    settings: Recipe,
    *,
    backbones: Sequence[BackboneName] = BACKBONES,
    methods: Sequence[BenchMethod] = BENCH_METHODS,
    steps: int = 5,
    warmup: int = 1,
    sequential: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measures `methods` on the same mini-batches with each of `backbones`, and prints a table for each network.

    Args:
        settings: options of the training, as in `ohem train`, without those of the network, sampler and accumulation.
        backbones: networks to measure.
        methods: methods to measure.
        steps, warmup, sequential: as for `measure`.
        out: JSON file of all results, written after each network.

    Returns:
        The content of the JSON file.

    Raises:
        InputError: the data or an option cannot be used, or a measurement failed.
    """
    _check(settings, backbones, methods, steps, warmup, out)
    data, settings = training_data(settings)
    build_proposals(data, settings.proposals)  # if they are missing: otherwise every method would make them
    options = {
        "backbones": list(backbones),
        "methods": list(methods),
        "steps": steps,
        "warmup": warmup,
        "sequential": sequential,
    }
    report: dict[str, Any] = {
        "machine": machine(),
        "options": options | _options(settings),
        "backbones": {},
    }
    folder = Path(tempfile.mkdtemp(prefix="ohem-bench-"))
    try:
        for backbone in dict.fromkeys(backbones):
            makes: dict[str, Make] = {
                method: partial(training_workload, method_recipe(settings, backbone, method), folder, warmup + steps)
                for method in methods
            }
            measured = measure(makes, steps=steps, warmup=warmup, sequential=sequential)
            report["backbones"][backbone] = _entry(measured)
            _print_table(backbone, report["backbones"][backbone])
            if out is not None:
                write_json(out, report)
    finally:
        with suppress(OSError):  # not empty: an error message has named a file in it
            folder.rmdir()
    print(NOTE)
    return report


def _check(
    settings: Recipe,
    backbones: Sequence[BackboneName],
    methods: Sequence[str],
    steps: int,
    warmup: int,
    out: Path | None,
) -> None:
    if not backbones or not methods:
        raise InputError(
            "there is nothing to measure: give at least one of --backbones and of --methods, or leave the option out"
        )
    if steps < 1 or warmup < 0:
        raise InputError(
            f"--steps {steps} --warmup {warmup} measures nothing: give --steps 1 or more, and --warmup 0 or more"
        )
    if out is not None:
        if out.is_dir() or not out.parent.is_dir():
            raise InputError(f"--out {out} cannot be written: name a file in a folder that exists")
        _check_replaced(out)
    for option, instead in NOT_FOR_BENCH.items():
        group, name = option.split(".")
        given, default = (getattr(getattr(recipe, group), name) for recipe in (settings, Recipe()))
        if given != default:
            raise InputError(f"--{option.replace('_', '-')} {given} is not for the benchmark: {instead}")
    for backbone in backbones:
        check_recipe(replace_options(settings, model={"backbone": backbone}))


def _check_replaced(out: Path) -> None:
    """Raises `InputError` if `out` is a file that is not a report of an earlier benchmark."""
    try:
        if out.exists() and not {"machine", "options", "backbones"} <= json.loads(out.read_bytes()).keys():
            raise ValueError
    except (OSError, ValueError, AttributeError, RecursionError):
        raise InputError(f"--out {out} exists and is not a report of `ohem bench`: name another file") from None


def _options(settings: Recipe) -> dict[str, Any]:
    """Returns the options that all methods share."""
    options = asdict(settings)
    del options["test"]
    for option in NOT_FOR_BENCH:
        group, name = option.split(".")
        del options[group][name]
    return options


def _entry(measured: Mapping[str, Measurement]) -> dict[str, Any]:
    return {
        "rois_an_image": rois_seen(measured),
        "summary": summarise(measured),
        "methods": {name: asdict(measurement) for name, measurement in measured.items()},
    }


def _print_table(backbone: str, entry: Mapping[str, Any]) -> None:
    counts, method = entry["rois_an_image"], next(iter(entry["methods"].values()))
    title = (
        f"{backbone} on {method['device']}, {method['threads']} threads: {counts['rois']:.0f} RoIs an image, "
        f"{counts['distinct']:.0f} of them distinct on the feature map ({counts['images']} images)"
    )
    console = make_console()
    if not console.is_terminal:
        console.width = 150  # a file has room for every column
    console.print(table(title, entry["summary"], TABLE2.get(backbone, {})), highlight=False)
