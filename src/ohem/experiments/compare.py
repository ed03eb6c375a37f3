"""`ohem compare`: trains methods with the same schedule and seeds on the data of a user, and compares their results."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

from ohem.config.schema import Recipe
from ohem.config.validation import check_recipe
from ohem.data.sources import FORMS
from ohem.errors import InputError
from ohem.experiments.commands import propose_command, seeds_from, train_command, with_seed
from ohem.experiments.compare_report import as_json, comparison_table, findings, gains_table
from ohem.experiments.html_report import check_page, write_page
from ohem.experiments.methods import ComparedMethod, parse_methods
from ohem.experiments.results import MethodSummary, read_result
from ohem.experiments.runner import Job, run_jobs
from ohem.inputs.datasets import check_objects, training_data
from ohem.inputs.examples import open_recipe_data
from ohem.io.console import make_console
from ohem.io.json_files import write_json
from ohem.training.fingerprints import digests_of_data
from ohem.training.run_folder import sole_writer

REPORT = "eval.json"


def compare(
    out: Path,
    name: str,
    recipe: Recipe,
    methods: Sequence[str],
    seeds: int,
    jobs: int,
    metric: str | None = None,
) -> list[MethodSummary]:
    """Trains and evaluates every method with every seed, prints a table, and writes compare.json and compare.html.

    Args:
        out: folder that gets the runs, METHOD-SEED.
        name: name of the recipe that all methods share.
        recipe: that recipe with the options of the user.
        methods: values of --methods, see `parse_method`; the others are compared with the first.
        seeds: number of runs of each method; their seeds begin at `recipe.solver.seed`.
        jobs: number of runs at the same time.
        metric: metric of the evaluation; by default that of the data.

    Raises:
        InputError: a method, a number or the data cannot be used, or a run failed.
    """
    compared, numbers = parse_methods(methods, recipe), seeds_from(recipe.solver.seed, seeds)
    if not recipe.data.train or not recipe.data.test:
        raise InputError(f"comparing needs data: name them with --data.train and --data.test, {FORMS}")
    check_page()
    digest = _check_data(recipe, out)
    for method in compared:  # now, not after hours of training the others
        check_recipe(method.recipe)
    options = [*(["--loss"] if recipe.model.detector == "fast_rcnn" else []), *(["--metric", metric] if metric else [])]
    runs = [
        replace(_job(out, name, method, seed, options), data_digest=digest) for seed in numbers for method in compared
    ]
    with sole_writer(out, "the comparison"):
        run_jobs(runs, jobs, _propose_command(recipe))
        return _report(out, name, compared, numbers, recipe)


def _report(
    out: Path, name: str, methods: Sequence[ComparedMethod], seeds: Sequence[int], recipe: Recipe
) -> list[MethodSummary]:
    """Prints the results of the runs, and writes compare.json and compare.html."""
    summaries = [_summary(out, method, seeds) for method in methods]
    base, *others = summaries
    make_console().print(
        comparison_table(summaries),
        *(gains_table(method, base) for method in others if not method.is_untrained(base)),
    )
    for sentence in findings(summaries):
        print(sentence)
    write_json(out / "compare.json", as_json(summaries))
    commands = [_job(out, name, method, seeds[0], []).train for method in methods]
    write_page(out / "compare.html", summaries, commands, recipe.data)
    print(f"{out / 'compare.html'}: the same as a page, with charts of the training loss and the gain of each class")
    return summaries


def _check_data(recipe: Recipe, out: Path) -> str:
    """Returns digests of the data of training and test; raises `InputError` if they cannot be used or are in `out`."""
    train, recipe = training_data(recipe)
    test = open_recipe_data(recipe, recipe.data.test, "--data.test")
    if any(source.folder.resolve() == out.resolve() for data in (train, test) for source in data.sources):
        raise InputError(f"{out} is a folder of the data: name another one for the runs")
    check_objects(test, recipe.data.test, "name another split for --data.test")
    return " ".join(text for data in (train, test) for text in astuple(digests_of_data(data)) if text)


def _summary(out: Path, method: ComparedMethod, seeds: Sequence[int]) -> MethodSummary:
    runs = [_run(out, method, seed) for seed in seeds]
    return MethodSummary(method.name, method.about, [read_result(run, run / REPORT) for run in runs])


def _run(out: Path, method: ComparedMethod, seed: int) -> Path:
    return out / f"{method.name}-{seed}"


def _job(out: Path, name: str, method: ComparedMethod, seed: int, options: Sequence[str]) -> Job:
    run = _run(out, method, seed)
    command = train_command(run, name, with_seed(method.recipe, seed))
    return Job(run, command, {run / REPORT: ["eval", str(run), *options]})


def _propose_command(recipe: Recipe) -> list[str]:
    """Returns the arguments of the command that makes the proposals; none if the detector makes its own."""
    if recipe.proposals.mode == "none":
        return []
    return propose_command([*recipe.data.train, *recipe.data.test], recipe.proposals)
