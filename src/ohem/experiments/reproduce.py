"""`ohem reproduce`: the rows of a table of the paper as trainings, ours beside the paper's figures."""

import json
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

from ohem.console import make_console
from ohem.data.sources import FORMS
from ohem.errors import InputError
from ohem.experiments.all_rois import compare_losses
from ohem.experiments.arms import Parse, shown
from ohem.experiments.beside import as_json, printed
from ohem.experiments.cells import Cell, cells_of
from ohem.experiments.outcomes import Outcome, read_outcome
from ohem.experiments.place import Place
from ohem.experiments.runner import Job, run_jobs, run_line
from ohem.experiments.tables import TABLES, PaperTable
from ohem.files import replacing
from ohem.training.build import build_data, check
from ohem.training.digests import digests_of_data
from ohem.training.runs import sole_writer


def reproduce(
    name: str,
    out: Path,
    place: Place,
    *,
    small: bool,
    networks: Sequence[str],
    seeds: int,
    jobs: int,
    dry_run: bool,
    extra: Sequence[str],
    parse: Parse | None = None,
) -> None:
    """Runs what is missing of the table `name` into `out` and prints it; with `dry_run`, prints the lines alone.

    Args:
        name: key of `TABLES`, or table2, which times steps.
        out: folder of the runs, shared by all tables, so that a training that two of them need is done once.
        place: the data.
        small: the small recipes, on `place.train` and `place.test`.
        networks: of those that the paper has, "vggm" and "vgg16"; unused if `small`.
        seeds: runs of each row.
        jobs: runs at once.
        dry_run: whether to print the lines and do nothing.
        extra: words that every training line ends in.
        parse: the settings that the words of a training line give, so that none fails after hours of the others.

    Raises:
        InputError: data that are needed were not given, an option or the networks make no sense, or a line failed.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds} trains nothing: give 1 or more")
    if small and not (place.train and place.test):
        raise InputError(f"--small needs data: name it with --data.train and --data.test, {FORMS}")
    if name == "table2":
        _bench(out, place, small, dry_run, extra)
        return
    table = TABLES[name]
    cells = list(cells_of(table, place, small, networks))
    numbers = range(seeds)
    if not cells:
        known = ", ".join(_networks(table))
        raise InputError(f"{name} has no row of --networks {' '.join(networks)}: the paper has {known} there")
    made = _jobs(out, cells, numbers, extra)
    _check_lines(made, extra, parse)
    if dry_run:
        for job in made:
            for line in (job.train, *job.evaluations.values()):
                print(shown(line))
        return
    with sole_writer(out, "the folder of runs"):
        sources = dict.fromkeys(source for cell in cells for source in (*cell.train, *cell.test))
        run_jobs(_with_digests(made, cells, out, numbers), jobs, ["propose", *sources, *_proposal_words(extra)])
        _report(name, out, cells, numbers, small)


def _with_digests(jobs: Sequence[Job], cells: Sequence[Cell], out: Path, seeds: Sequence[int]) -> list[Job]:
    """The jobs with the digests of their data, which are read once whatever number of rows they serve."""
    digest = cache(lambda sources: " ".join(astuple(digests_of_data(build_data(sources, (), "--data")))))
    made_of = {
        cell.run(out, seed): " ".join(digest(tuple(each)) for each in (cell.train, cell.test) if each)
        for cell in cells
        for seed in seeds
    }
    return [replace(job, made_of=made_of[job.run]) for job in jobs]


def _report(name: str, out: Path, cells: Sequence[Cell], seeds: Sequence[int], small: bool) -> None:
    if name == "figure3":
        _figure(out, cells, seeds)
        return
    found = {cell: _outcomes(cell, out, seeds) for cell in cells}
    make_console().print(*printed(TABLES[name], found, small), sep="\n")
    with replacing(out / f"{name}.json") as beside:
        beside.write_text(json.dumps(as_json(TABLES[name], found), indent=2) + "\n")


def _check_lines(jobs: Sequence[Job], extra: Sequence[str], parse: Parse | None) -> None:
    """Raises InputError where a training line would be refused: before the first is trained, and in a dry run."""
    if any(word.split("=")[0] == "--solver.seed" for word in extra):
        raise InputError("--solver.seed is given to each run: say how many with --seeds")
    if parse:
        for job in jobs:
            check(parse(job.train))


def _figure(out: Path, cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    """Figure 3, as a chart and as JSON."""
    runs = [cell.run(out, seed) for cell in cells for seed in seeds]
    curves = compare_losses(runs, (), out / "figure3.svg", {cell.recipe: cell.row.label for cell in cells})
    with replacing(out / "figure3.json") as beside:
        beside.write_text(json.dumps({curve.run.name: curve.losses for curve in curves}, indent=2) + "\n")


def _networks(table: PaperTable) -> list[str]:
    return list(dict.fromkeys(name for row in table.rows for name in row.paper))


def _bench(out: Path, place: Place, small: bool, dry_run: bool, extra: Sequence[str]) -> None:
    """Table 2, on the images of the others."""
    train, _ = (place.small if small else place.paper)("voc07") or ((), ())
    line = ["bench", "--data.train", *train, "--out", str(out / "table2.json"), *extra]
    if dry_run:
        print(shown(line))
        return
    out.mkdir(parents=True, exist_ok=True)
    run_line(line)


def _jobs(out: Path, cells: Sequence[Cell], seeds: Sequence[int], extra: Sequence[str]) -> list[Job]:
    """A job for each training, with the evaluations of all rows that it serves."""
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        for cell in cells:
            run = cell.run(out, seed)
            before = jobs[run].evaluations if run in jobs else {}
            evaluations = {**before, run / cell.file: cell.evaluation(out, seed)}
            jobs[run] = Job(run, cell.training(out, seed, extra), evaluations)
    return list(jobs.values())


def _outcomes(cell: Cell, out: Path, seeds: Sequence[int]) -> list[Outcome]:
    """Of its runs; none where the server scores them."""
    if not cell.file.endswith(".json"):
        return []
    return [read_outcome(cell.run(out, seed), cell.run(out, seed) / cell.file) for seed in seeds]


def _proposal_words(extra: Sequence[str]) -> list[str]:
    """What `extra` says about proposals, as `ohem propose` takes it."""
    kept, found = False, []
    for word in extra:
        kept = word.startswith("--proposals.") if word.startswith("--") else kept
        found += [word.replace("--proposals.", "--")] if kept else []
    return found
