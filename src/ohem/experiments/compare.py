"""`ohem compare`: does mining help on my data? Arms of the same schedule, seeds and tests, side by side."""

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ohem.console import make_console, make_table
from ohem.data.sources import FORMS
from ohem.errors import InputError
from ohem.experiments.arms import Arm, Parse, changed, make_arms, seeded, words
from ohem.experiments.outcomes import Summary, read_outcome
from ohem.experiments.page import check_page, write_page
from ohem.experiments.runner import Job, run_jobs
from ohem.files import replacing
from ohem.training.build import build_data, check, check_objects
from ohem.training.config import ProposalConfig, Recipe
from ohem.training.digests import digests_of_data
from ohem.training.runs import sole_writer
from ohem.training.start import training_data

REPORT = "eval.json"


def compare(
    out: Path,
    recipe: str,
    settings: Recipe,
    arms: Sequence[str],
    seeds: int,
    jobs: int,
    metric: str | None = None,
    parse: Parse | None = None,
) -> list[Summary]:
    """Trains and evaluates every arm with every seed into `out`; prints a table, writes compare.json and compare.html.

    Args:
        out: folder that gets the runs, ARM-SEED.
        recipe: name of the recipe that the arms share.
        settings: that recipe with what was changed of it.
        arms: see `make_arm`; the first is the one that the others are compared with.
        seeds: runs of each arm, from `settings.solver.seed` on.
        jobs: runs at once.
        metric: of the evaluation; by default that of the data.
        parse: the settings that the words of a training line give, so that no arm fails after hours of the others.

    Raises:
        InputError: an arm, a number or the data make no sense, or a run failed.
    """
    chosen, numbers = make_arms(arms, recipe, settings), seeded(settings, seeds)
    if len(chosen) < 2:
        raise InputError("--arms needs two or more to compare, the first being what the others are compared with")
    if not settings.data.train or not settings.data.test:
        raise InputError(f"comparing needs data: name it with --data.train and --data.test, {FORMS}")
    check_page()
    made_of = _check_data(settings, out)
    if parse:
        for arm in chosen:
            check(parse(arm.line(_run(out, arm, numbers[0]), numbers[0])))
    extra = [*(["--loss"] if settings.model.detector == "fast_rcnn" else []), *(["--metric", metric] if metric else [])]
    work = [replace(_job(out, arm, seed, extra), made_of=made_of) for seed in numbers for arm in chosen]
    with sole_writer(out, "the comparison"):
        run_jobs(work, jobs, _proposing(settings))
        return _report(out, chosen, numbers, settings)


def _report(out: Path, arms: Sequence[Arm], seeds: Sequence[int], settings: Recipe) -> list[Summary]:
    """Prints what the runs gave, and writes compare.json and compare.html."""
    summaries = [_summary(out, arm, seeds) for arm in arms]
    make_console().print(comparison_table(summaries), *(gains_table(arm, summaries[0]) for arm in summaries[1:]))
    for line in findings(summaries):
        print(line)
    with replacing(out / "compare.json") as beside:
        beside.write_text(json.dumps(as_json(summaries), indent=2) + "\n")
    lines = [arm.line(_run(out, arm, seeds[0]), seeds[0]) for arm in arms]
    write_page(out / "compare.html", summaries, lines, settings.data)
    print(f"{out / 'compare.html'}: the same with training curves and gains per class")
    return summaries


def _check_data(settings: Recipe, out: Path) -> str:
    """Returns digests of the data to train and to test on; raises InputError where they are of no use, or in `out`."""
    trained, settings = training_data(settings)
    data = build_data(settings.data.test, settings.data.classes, "--data.test", skip_others=settings.data.skip_others)
    if any(source.folder.resolve() == out.resolve() for each in (trained, data) for source in each.sources):
        raise InputError(f"{out} is a folder of the data: name another one for the runs")
    check_objects(data, settings.data.test, "name another split for --data.test")
    return " ".join(text for each in (trained, data) for text in astuple(digests_of_data(each)) if text)


def _summary(out: Path, arm: Arm, seeds: Sequence[int]) -> Summary:
    runs = [_run(out, arm, seed) for seed in seeds]
    return Summary(arm.name, arm.about, [read_outcome(run, run / REPORT) for run in runs])


def _run(out: Path, arm: Arm, seed: int) -> Path:
    return out / f"{arm.name}-{seed}"


def _job(out: Path, arm: Arm, seed: int, extra: Sequence[str]) -> Job:
    run = _run(out, arm, seed)
    return Job(run, arm.line(run, seed), {run / REPORT: ["eval", str(run), *extra]})


def _proposing(settings: Recipe) -> list[str]:
    """Words of the command that makes the proposals; empty where the detector makes its own."""
    if settings.proposals.mode == "none":
        return []
    proposals = changed(settings.proposals, ProposalConfig())
    return ["propose", *settings.data.train, *settings.data.test, *words(proposals)]


def comparison_table(summaries: Sequence[Summary]) -> Table:
    """A row for each arm."""
    base = summaries[0]
    table = Table(title="mean ± standard error; loss over all RoIs")
    table.add_column("arm", overflow="fold", min_width=min(14, max(len(arm.name) for arm in summaries)))
    for column in ("mAP", f"less {base.name}", "95 % interval", "loss", "s/step"):
        table.add_column(column, overflow="fold", min_width=max(map(len, column.split())))
    for arm in summaries:
        loss = f"{arm.loss.mean:.4f}" if arm.loss else ""
        if arm is base:
            found = ["", ""]
        else:
            gain = arm.against(base)
            interval = "" if math.isnan(gain.low) else f"{gain.low:+.1f} to {gain.high:+.1f}"
            found = [f"{gain.mean:+.1f}", interval]
        table.add_row(arm.name, str(arm.map), *found, loss, f"{arm.seconds:.2f}")
    return table


def gains_table(arm: Summary, base: Summary) -> Table:
    """A row for each class with objects, the highest gain first."""
    table = make_table("class", arm.name, base.name, "gain", title=f"AP, {arm.name} against {base.name}")
    for name, gain in arm.gains(base):
        table.add_row(name, f"{arm.ap(name):.1f}", f"{base.ap(name):.1f}", f"{gain:+.1f}")
    return table


def findings(summaries: Sequence[Summary]) -> list[str]:
    """In sentences, an arm each: what is known about it, and the classes that gain and lose most."""
    base = summaries[0]
    lines = []
    for arm in summaries[1:]:
        gain, classes = arm.against(base), arm.gains(base)
        most, least = classes[0], classes[-1]
        between = "" if math.isnan(gain.low) else f", between {gain.low:+.1f} and {gain.high:+.1f} with 95 % confidence"
        lines.append(
            f"{arm.name} against {base.name}: {gain.mean:+.1f} mAP over {gain.n} seed{'s' * (gain.n > 1)}{between}: "
            f"{gain.verdict()}. Most: {most[0]} {most[1]:+.1f}; least: {least[0]} {least[1]:+.1f}."
        )
    return lines


def as_json(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Everything, for other programs; what is unknown is null."""
    base = summaries[0]
    return {
        "base": base.name,
        "arms": [
            {
                "name": arm.name,
                "about": arm.about,
                "map": _number(arm.map.mean),
                "standard_error": _number(arm.map.error),
                "maps": arm.maps,
                "ap": [dict(run.ap) for run in arm.runs],
                "loss_all_rois": [run.loss for run in arm.runs],
                "seconds_per_step": arm.seconds,
                "mined": [dict(run.mined) for run in arm.runs],
                **({} if arm is base else {"difference": _difference(arm, base)}),
            }
            for arm in summaries
        ],
    }


def _difference(arm: Summary, base: Summary) -> dict[str, Any]:
    gain = arm.against(base)
    return {
        "mean": gain.mean,
        "standard_error": _number(gain.error),
        "interval": [_number(gain.low), _number(gain.high)],
        "confidence": gain.confidence,
        "verdict": gain.verdict(),
        "per_class": dict(arm.gains(base)),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
