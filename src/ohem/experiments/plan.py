"""Plans the rows of the paper's tables as runs: how each is trained and evaluated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ohem.config.methods import replace_options
from ohem.config.paper import TABLES, PaperTable, TableRow
from ohem.config.paper_data import LARGER, SERVER, PaperData
from ohem.config.recipes import PAPER_M, RECIPES, SMALL_M
from ohem.config.resolve import parse_options
from ohem.config.schema import Recipe
from ohem.experiments.commands import format_options, train_command, with_seed
from ohem.training import roi_loss

SMALL = "small"
# The methods of figure 3, and the number of snapshots of the weights in their trainings.
CURVES = {row.method for row in TABLES["figure3"].rows}
SNAPSHOTS = 4


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A row of a table with one network; each seed is a training of its own.

    Args:
        row: what the paper reports.
        network: one of the row's, or `SMALL`.
        name: name of the recipe that the training starts from.
        recipe: all options of the training.
        evaluation: options of the evaluation, without its output file.
        file: name of the file that the evaluation writes in the folder of the run.
    """

    row: TableRow
    network: str
    name: str
    recipe: Recipe
    evaluation: Sequence[str]
    file: str

    def folder(self, out: Path, seed: int) -> Path:
        """Returns the run folder below `out`."""
        larger = "-larger" if self.network == SMALL and self.row.data in LARGER else ""
        return out / f"{self.name}{larger}-{seed}"

    def train_command(self, out: Path, seed: int) -> list[str]:
        """Returns the arguments of the training command, which is the same in every table."""
        return train_command(self.folder(out, seed), self.name, with_seed(self.recipe, seed))

    def evaluate_command(self, out: Path, seed: int) -> list[str]:
        """Returns the arguments of the evaluation command."""
        run = self.folder(out, seed)
        if self.file == roi_loss.NAME:
            return ["loss", str(run)]
        where = "--out" if self.file.endswith(".json") else "--submit"
        return ["eval", str(run), *self.evaluation, where, str(run / self.file)]


def plan_table(
    table: PaperTable, data: PaperData, small: bool, networks: Sequence[str], options: Sequence[str]
) -> Iterator[PlannedRun]:
    """Plans the rows of `table`; prints which ones are left out because their data were not given.

    Args:
        table: the rows.
        data: where the data are.
        small: plan the small recipes on `data.train` and `data.test`.
        networks: the networks of the paper to plan; unused if `small`.
        options: arguments that the user gave for every training.
    """
    left_out = set()
    for row in table.rows:
        for network in [SMALL] if small else [name for name in table.networks_of(row) if name in networks]:
            sources = data.small(row.data) if small else data.paper(row.data)
            if sources is None:
                left_out.add(LARGER[row.data])
                continue
            name = f"small-{row.method}" if small else f"{row.data}-{network}-{row.method}"
            recipe = _recipe(row, name, sources, options)
            yield PlannedRun(row, network, name, recipe, *_evaluation(table, row, recipe, data, small))
    for larger in sorted(left_out):
        print(f"the rows of {larger} are left out: they need a second source with --data.train")


def _recipe(
    row: TableRow, name: str, sources: tuple[tuple[str, ...], tuple[str, ...]], options: Sequence[str]
) -> Recipe:
    train, test = sources
    recipe = replace_options(RECIPES[name].recipe, data={"train": train, "test": test})
    if options:
        recipe = parse_options(options, recipe)
    if row.method in CURVES and not recipe.run.snapshot_every:
        every = max(1, recipe.solver.steps // SNAPSHOTS)
        recipe = replace(recipe, run=replace(recipe.run, snapshot_every=every))
    return recipe


def _evaluation(
    table: PaperTable, row: TableRow, recipe: Recipe, data: PaperData, small: bool
) -> tuple[list[str], str]:
    """Returns the options of the evaluation of `row`, and the name of the file that it writes."""
    if table is TABLES["figure3"]:
        return [], roi_loss.NAME
    options = format_options(row.test(recipe, SMALL_M if small else PAPER_M), recipe.test, "test.")
    name = "-".join([table.metric, *(argument.removeprefix("--test.") for argument in options)])
    if row.data in SERVER and not small:
        return [*options, "--data", data.server()], f"submission-{name}"
    # The loss does not depend on the options of the test, so one evaluation of each training measures it.
    return ["--metric", table.metric, *(options or ["--loss"])], f"eval-{name}.json"
