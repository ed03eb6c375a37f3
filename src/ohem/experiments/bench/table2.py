"""`ohem bench`: computational statistics of training with and without mining (paper, table 2)."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ohem.console import make_console
from ohem.errors import InputError
from ohem.experiments.bench.arms import ARMS, BACKBONES, PAPER, Arm, arm_recipe
from ohem.experiments.bench.measure import Measurement, measure
from ohem.experiments.bench.report import machine, rois_seen, summarise, table
from ohem.experiments.bench.training import training
from ohem.experiments.bench.worker import Make
from ohem.files import replacing
from ohem.training.build import build_proposals, check
from ohem.training.config import Backbone, Recipe
from ohem.training.start import training_data
from ohem.training.variants import vary

NOTE = """\
s/step: whole training steps, median (lowest-highest). CPU s: of all cores together, which other programs disturb less.
ratio: to frcn, that of ohem-accumulate to frcn-accumulate; of seconds, in the same round, median (lowest-highest).
built, peak: memory before the first step, and at most; on a CPU the resident set of the process, with interpreter and
libraries, on a GPU what torch's allocator gave. GB: 10^9 bytes. paper: Caffe on a Titan X."""
# Options of a training that the benchmark has others for, or no use for.
NOT_FOR_BENCH = {
    "model.backbone": "give --backbones",
    "model.implementation": "give --arms",
    "model.rescored": "give --arms",
    "sampler.name": "give --arms",
    "solver.accumulate": "give --arms",
    "solver.steps": "give --steps",
    "run.devices": "every arm is one process, so leave it out",
    "data.workers": "images are read between the steps, so leave it out",
}


def run_bench(
    settings: Recipe,
    *,
    backbones: Sequence[Backbone] = BACKBONES,
    arms: Sequence[Arm] = ARMS,
    steps: int = 5,
    warmup: int = 1,
    apart: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measures `arms` on the same mini-batches for each of `backbones` and prints a table for each.

    Args:
        settings: of the training, as in `ohem train`; network, sampler and accumulation are the arms' own.
        steps, warmup, apart: as for `measure`.
        out: JSON file of all figures, written after each network.

    Returns:
        What the JSON file holds.

    Raises:
        InputError: data, options or machine do not fit.
    """
    _check(settings, backbones, arms, steps, warmup, out)
    data, settings = training_data(settings)
    build_proposals(data, settings.proposals)  # made here if missing: the arms would all make them
    options = {"backbones": list(backbones), "arms": list(arms), "steps": steps, "warmup": warmup, "apart": apart}
    report: dict[str, Any] = {
        "machine": machine(),
        "options": options | _options(settings),
        "backbones": {},
    }
    folder = Path(tempfile.mkdtemp(prefix="ohem-bench-"))
    try:
        for backbone in dict.fromkeys(backbones):
            makes: dict[str, Make] = {
                arm: partial(training, arm_recipe(settings, backbone, arm), folder, warmup + steps) for arm in arms
            }
            measured = measure(makes, steps=steps, warmup=warmup, apart=apart)
            report["backbones"][backbone] = _entry(measured)
            _print(backbone, report["backbones"][backbone])
            if out is not None:
                with replacing(out) as beside:
                    beside.write_text(json.dumps(report, indent=2) + "\n")
    finally:
        with suppress(OSError):  # not empty: an error has told the person to look into it
            folder.rmdir()
    print(NOTE)
    return report


def _check(
    settings: Recipe, backbones: Sequence[Backbone], arms: Sequence[str], steps: int, warmup: int, out: Path | None
) -> None:
    if not backbones or not arms:
        raise InputError("nothing is left to measure: give one of --backbones and of --arms, or leave the option out")
    if steps < 1 or warmup < 0:
        raise InputError(
            f"--steps {steps} --warmup {warmup} measures nothing: give 1 step or more, and 0 or more before"
        )
    if out is not None:
        if out.is_dir() or not out.parent.is_dir():
            raise InputError(f"--out {out} cannot be written: name a file in a folder that exists")
        _check_replaced(out)
    for option, instead in NOT_FOR_BENCH.items():
        group, name = option.split(".")
        given, usual = (getattr(getattr(recipe, group), name) for recipe in (settings, Recipe()))
        if given != usual:
            raise InputError(f"--{option} {given} is not for the benchmark: {instead}")
    for backbone in backbones:
        check(vary(settings, model={"backbone": backbone}))


def _check_replaced(out: Path) -> None:
    """Raises InputError where `out` is a file that is no report of an earlier benchmark."""
    try:
        if out.exists() and not {"machine", "options", "backbones"} <= json.loads(out.read_bytes()).keys():
            raise ValueError
    except (OSError, ValueError, AttributeError, RecursionError):
        raise InputError(f"--out {out} exists and is no report of `ohem bench`: name another file") from None


def _options(settings: Recipe) -> dict[str, Any]:
    """Those that hold for every arm."""
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
        "arms": {name: asdict(each) for name, each in measured.items()},
    }


def _print(backbone: str, entry: Mapping[str, Any]) -> None:
    seen, arm = entry["rois_an_image"], next(iter(entry["arms"].values()))
    title = (
        f"{backbone} on {arm['device']}, {arm['threads']} threads: {seen['rois']:.0f} RoIs an image, "
        f"{seen['distinct']:.0f} of them distinct on the feature map ({seen['images']} images)"
    )
    console = make_console()
    if not console.is_terminal:
        console.width = 150  # no window to fit into
    console.print(table(title, entry["summary"], PAPER.get(backbone, {})), highlight=False)
