"""`ohem reproduce`: trains the rows of a table of the paper, and prints our results next to those of the paper."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

from ohem.config.paper import TABLES
from ohem.config.paper_data import PaperData
from ohem.config.schema import DataConfig
from ohem.config.validation import check_recipe
from ohem.data.sources import FORMS
from ohem.errors import InputError
from ohem.experiments.categories.facts import Category, describe_categories
from ohem.experiments.categories.report import as_json as as_json_of_categories
from ohem.experiments.categories.report import category_chart, category_table, sentences
from ohem.experiments.charts import save
from ohem.experiments.commands import format_command, propose_command, seeds_from
from ohem.experiments.loss_curves import compare_losses
from ohem.experiments.plan import PlannedRun, plan_table
from ohem.experiments.reproduce_report import Results, as_json, make_tables
from ohem.experiments.results import RunResult, read_result
from ohem.experiments.runner import Job, run_command, run_jobs
from ohem.inputs.datasets import open_data
from ohem.inputs.examples import open_training_data
from ohem.inputs.negatives import add_negatives
from ohem.io.console import make_console
from ohem.io.json_files import write_json
from ohem.training.fingerprints import digests_of_data
from ohem.training.run_folder import sole_writer


def reproduce(
    name: str,
    out: Path,
    data: PaperData,
    *,
    small: bool,
    networks: Sequence[str],
    seeds: int,
    jobs: int,
    cluster: str | None = None,
    dry_run: bool,
    options: Sequence[str],
) -> None:
    """Runs what is missing of the table `name` and prints the table; with `dry_run`, prints only the commands.

    Args:
        name: key of `TABLES`, or table2, which measures training steps.
        out: folder of the runs. The tables share it: a training that two tables need is done once.
        data: where the data are.
        small: whether to train the small recipes on `data.train` and `data.test`.
        networks: networks of the paper, "vggm" and "vgg16"; unused if `small`.
        seeds: number of runs of each row.
        jobs: number of runs at the same time.
        cluster: address of a Dask scheduler whose workers do the runs, as `ohem.cluster.executor_on` takes it.
        dry_run: whether to print the commands and run nothing.
        options: options of `ohem train` for every training, as arguments.

    Raises:
        InputError: data are missing, an option or the networks cannot be used, or a command failed.
    """
    if small and not (data.train and data.test):
        raise InputError(f"--small needs data: name them with --data.train and --data.test, {FORMS}")
    if name == "table2":
        _bench(out, data, small, dry_run, options)
        return
    table = TABLES[name]
    if any(option.split("=")[0] == "--solver.seed" for option in options):
        raise InputError("--solver.seed is set for each run: leave it out, and give the number of runs with --seeds")
    runs = list(plan_table(table, data, small, networks, options))
    numbers = seeds_from(0, seeds)
    if not runs:
        known = ", ".join(table.networks)
        raise InputError(f"{name} has no row of --networks {' '.join(networks)}: the paper has {known} there")
    for run in runs:  # now, not after hours of training the others
        check_recipe(run.recipe)
    planned = _jobs(out, runs, numbers)
    if dry_run:
        for job in planned:
            for command in (job.train, *job.evaluations.values()):
                print(format_command(command))
        return
    with sole_writer(out, "the folder of runs"):
        sources = dict.fromkeys(source for run in runs for source in (*run.recipe.data.train, *run.recipe.data.test))
        propose = propose_command(sources, runs[0].recipe.data.negatives, runs[0].recipe.proposals)
        run_jobs(_with_digests(planned, runs, out, numbers), jobs, propose, cluster)
        _report(name, out, runs, numbers, small)


def _with_digests(jobs: Sequence[Job], runs: Sequence[PlannedRun], out: Path, seeds: Sequence[int]) -> list[Job]:
    """Returns the jobs with the digests of their data; data that several rows share are read once."""

    @cache
    def digest(sources: Sequence[str], negatives: Sequence[str]) -> str:
        data = open_data(sources, (), "--data")
        add_negatives(data, negatives)
        return " ".join(astuple(digests_of_data(data)))

    def digests(data: DataConfig) -> str:
        parts = ((data.train, data.negatives), (data.test, ()))
        return " ".join(digest(sources, negatives) for sources, negatives in parts if sources)

    texts = {run.folder(out, seed): digests(run.recipe.data) for run in runs for seed in seeds}
    return [replace(job, data_digest=texts[job.run]) for job in jobs]


def _report(name: str, out: Path, runs: Sequence[PlannedRun], seeds: Sequence[int], small: bool) -> None:
    if name == "figure3":
        _figure(out, runs, seeds)
        return
    results = {run: _results(run, out, seeds) for run in runs}
    if name == "categories":
        _study_categories(out, results, seeds)
        return
    make_console().print(*make_tables(TABLES[name], results, small), sep="\n")
    write_json(out / f"{name}.json", as_json(TABLES[name], results))


def _figure(out: Path, runs: Sequence[PlannedRun], seeds: Sequence[int]) -> None:
    """Prints the losses of figure 3, and writes them as a chart and as JSON."""
    folders = [run.folder(out, seed) for run in runs for seed in seeds]
    curves = compare_losses(folders, (), out / "figure3.svg", {run.name: run.row.label for run in runs})
    write_json(out / "figure3.json", {curve.run.name: curve.losses for curve in curves})


def _study_categories(out: Path, results: Results, seeds: Sequence[int]) -> None:
    """Prints the classes with their gains, for each network, and writes them as a chart and as JSON."""
    networks: dict[str, list[Category]] = {}
    for network in dict.fromkeys(run.network for run in results):
        base, ohem = (run for run in results if run.network == network)
        train = open_training_data(ohem.recipe)
        folders = [ohem.folder(out, seed) for seed in seeds]
        networks[network] = describe_categories(train, results[base], results[ohem], folders)
        make_console().print(category_table(networks[network], f"{TABLES['categories'].title}, {network}"))
        print(*sentences(networks[network]), sep="\n")
    write_json(out / "categories.json", {name: as_json_of_categories(classes) for name, classes in networks.items()})
    save(category_chart(networks), out / "categories.svg")
    print(f"{out / 'categories.svg'}: the gain of each class against its properties")


def _bench(out: Path, data: PaperData, small: bool, dry_run: bool, options: Sequence[str]) -> None:
    """Measures table 2 on the training images of the other tables."""
    train, _ = (data.small if small else data.paper)("voc07") or ((), ())
    command = ["bench", "--data.train", *train, "--out", str(out / "table2.json"), *options]
    if dry_run:
        print(format_command(command))
        return
    out.mkdir(parents=True, exist_ok=True)
    run_command(command)


def _jobs(out: Path, runs: Sequence[PlannedRun], seeds: Sequence[int]) -> list[Job]:
    """Returns a job for each training, with the evaluations of all rows that need it."""
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        for run in runs:
            folder = run.folder(out, seed)
            earlier = jobs[folder].evaluations if folder in jobs else {}
            evaluations = {**earlier, folder / run.file: run.evaluate_command(out, seed)}
            jobs[folder] = Job(folder, run.train_command(out, seed), evaluations)
    return list(jobs.values())


def _results(run: PlannedRun, out: Path, seeds: Sequence[int]) -> list[RunResult]:
    """Returns the results of each seed; none if the server computes them."""
    if not run.file.endswith(".json"):
        return []
    return [read_result(run.folder(out, seed), run.folder(out, seed) / run.file) for seed in seeds]
