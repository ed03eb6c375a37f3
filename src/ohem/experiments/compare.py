"""`ohem compare`: trains methods with the same schedule and seeds on the data of a user, and compares their results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ohem.config.schema import Recipe
from ohem.config.validation import check_recipe
from ohem.data.sources import FORMS
from ohem.errors import InputError
from ohem.evaluation.map_curve import NAME as MAP_CURVE
from ohem.evaluation.report import NAME as REPORT
from ohem.experiments.commands import propose_command, seeds_from, train_command, with_seed
from ohem.experiments.compare_report import as_json, comparison_table, findings, gains_table, time_tables
from ohem.experiments.html_report import check_page, write_page
from ohem.experiments.methods import ComparedMethod, parse_methods
from ohem.experiments.results import MethodSummary, read_result
from ohem.experiments.runner import Job, run_jobs
from ohem.inputs.datasets import check_objects, training_data
from ohem.inputs.examples import open_recipe_data
from ohem.io.console import make_console
from ohem.io.json_files import write_json
from ohem.training.fingerprints import digest_of_sets
from ohem.training.run_folder import sole_writer


def compare(
    out: Path,
    name: str,
    recipe: Recipe,
    methods: Sequence[str],
    seeds: int,
    jobs: int,
    metric: str | None = None,
    curve: int = 0,
    cluster: str | None = None,
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
        curve: number of points of the curve of mAP against seconds. The trainings keep so many snapshots, unless
            `recipe.run.snapshot_every` has another number of them. 0: no curve.
        cluster: address of a Dask scheduler whose workers do the runs, as `ohem.cluster.executor_on` takes it.

    Raises:
        InputError: a method, a number or the data cannot be used, or a run failed.
    """
    compared, numbers = parse_methods(methods, recipe), seeds_from(recipe.solver.seed, seeds)
    if not recipe.data.train or not recipe.data.test:
        raise InputError(f"comparing needs data: name them with --data.train and --data.test, {FORMS}")
    if curve < 0:
        raise InputError(f"--curve {curve} is no number of points: give 1 or more, or 0 for no curve")
    check_page()
    # A method may have negatives of its own.
    negatives = tuple(dict.fromkeys(folder for method in compared for folder in method.recipe.data.negatives))
    shared = replace(recipe, data=replace(recipe.data, negatives=negatives))
    digest = _check_data(shared, out)
    for method in compared:  # now, not after hours of training the others
        check_recipe(method.recipe)
    plan = _Plan(out, name, recipe, metric, curve)
    runs = [replace(plan.job(method, seed), data_digest=digest) for seed in numbers for method in compared]
    with sole_writer(out, "the comparison"):
        data = shared.data
        propose = propose_command([*data.train, *data.test], data.negatives, shared.proposals)
        run_jobs(runs, jobs, propose, cluster)
        return _report(plan, compared, numbers)


@dataclass(frozen=True)
class _Plan:
    """How each run is trained and evaluated; the arguments are those of `compare`."""

    out: Path
    name: str
    recipe: Recipe
    metric: str | None
    curve: int

    def job(self, method: ComparedMethod, seed: int) -> Job:
        """Returns the training of `method` and its evaluations."""
        run = self.out / f"{method.name}-{seed}"
        metric = ["--metric", self.metric] if self.metric else []
        loss = ["--loss"] if self.recipe.model.detector == "fast_rcnn" else []
        evaluations = {run / REPORT: ["eval", str(run), *loss, *metric]}
        if self.curve:
            evaluations[run / MAP_CURVE] = ["eval", str(run), "--curve", str(self.curve), *metric]
        train = train_command(run, self.name, with_seed(method.recipe, seed))
        return Job(run, train, evaluations, observing=self._snapshots(method))

    def summary(self, method: ComparedMethod, seeds: Sequence[int]) -> MethodSummary:
        """Reads the results of the runs of `method`."""
        runs = [self.job(method, seed).run for seed in seeds]
        results = [read_result(run, run / REPORT, run / MAP_CURVE if self.curve else None) for run in runs]
        return MethodSummary(method.name, method.about, results)

    def _snapshots(self, method: ComparedMethod) -> list[str]:
        """Returns options of the training for `curve` snapshots; none if the recipe has some already."""
        run, solver = method.recipe.run, method.recipe.solver
        if not self.curve or run.snapshot_every:
            return []
        return ["--run.snapshot-every", str(math.ceil(solver.steps / self.curve))]


def _report(plan: _Plan, methods: Sequence[ComparedMethod], seeds: Sequence[int]) -> list[MethodSummary]:
    """Prints the results of the runs, and writes compare.json and compare.html."""
    summaries = [plan.summary(method, seeds) for method in methods]
    base, *others = summaries
    make_console().print(
        comparison_table(summaries),
        *time_tables(summaries),
        *(gains_table(method, base) for method in others if not method.is_untrained(base)),
    )
    for sentence in findings(summaries):
        print(sentence)
    write_json(plan.out / "compare.json", as_json(summaries))
    commands = [plan.job(method, seeds[0]).train_command for method in methods]
    page = plan.out / "compare.html"
    write_page(page, summaries, commands, plan.recipe.data)
    print(f"{page}: the same as a page, with charts of the mAP, the training loss and the gain of each class")
    return summaries


def _check_data(recipe: Recipe, out: Path) -> str:
    """Returns digests of the data of training and test; raises `InputError` if they cannot be used or are in `out`."""
    train, recipe = training_data(recipe)
    test = open_recipe_data(recipe, recipe.data.test, "--data.test")
    if any(source.folder.resolve() == out.resolve() for data in (train, test) for source in data.sources):
        raise InputError(f"{out} is a folder of the data: name another one for the runs")
    check_objects(test, recipe.data.test, "name another split for --data.test")
    return digest_of_sets(train, test)
