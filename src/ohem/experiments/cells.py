"""The rows of the paper's tables as command lines: a training, and how it is evaluated for the row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ohem.experiments.arms import changed, words
from ohem.experiments.place import LARGER, SERVER, Place
from ohem.experiments.tables import TABLES, PaperTable, Row
from ohem.training import loss_all
from ohem.training.recipes import PAPER_M, RECIPES, SMALL_M

SMALL = "small"
# The arms of figure 3, and how many times the weights of a training of theirs are kept.
CURVES = {row.variant for row in TABLES["figure3"].rows}
SNAPSHOTS = 4


@dataclass(frozen=True, eq=False)
class Cell:
    """A row with one network.

    Args:
        row: what the paper reports.
        network: of the row's, or `SMALL`.
        recipe: the named one that it is trained by.
        train: sources.
        test: sources, none where the server has the annotations.
        options: of the evaluation, besides where it writes.
        file: what the evaluation writes in the folder of the run.
    """

    row: Row
    network: str
    recipe: str
    train: Sequence[str]
    test: Sequence[str]
    options: Sequence[str]
    file: str

    def run(self, out: Path, seed: int) -> Path:
        larger = "-larger" if self.network == SMALL and self.row.data in LARGER else ""
        return out / f"{self.recipe}{larger}-{seed}"

    def training(self, out: Path, seed: int, extra: Sequence[str]) -> list[str]:
        """Words of the training command, the same in every table."""
        test = ["--data.test", *self.test] if self.test else []
        line = ["train", str(self.run(out, seed)), "--recipe", self.recipe, "--data.train", *self.train, *test]
        if self.row.variant in CURVES and not _given(extra, "--run.snapshot-every"):
            steps = _given(extra, "--solver.steps")
            last = int(steps) if steps.isdigit() else RECIPES[self.recipe].recipe.solver.steps
            line += ["--run.snapshot-every", str(max(1, last // SNAPSHOTS))]
        return [*line, *extra, "--solver.seed", str(seed)]

    def evaluation(self, out: Path, seed: int) -> list[str]:
        """Words of the evaluation command."""
        run = self.run(out, seed)
        if self.file == loss_all.NAME:
            return ["loss", str(run)]
        where = "--out" if self.file.endswith(".json") else "--submit"
        return ["eval", str(run), *self.options, where, str(run / self.file)]


def cells_of(table: PaperTable, place: Place, small: bool, networks: Sequence[str]) -> Iterator[Cell]:
    """The rows of `table` with each of the `networks`, or with the small one; tells of those without data."""
    left_out = set()
    for row in table.rows:
        for network in [SMALL] if small else [each for each in row.paper if each in networks]:
            sources = place.small(row.data) if small else place.paper(row.data)
            if sources is None:
                left_out.add(LARGER[row.data])
                continue
            recipe = f"small-{row.variant}" if small else f"{row.data}-{network}-{row.variant}"
            yield Cell(row, network, recipe, *sources, *_tested(table, row, recipe, place, small))
    for larger in sorted(left_out):
        print(f"the rows of {larger} need a second source with --data.train: left out")


def _tested(table: PaperTable, row: Row, recipe: str, place: Place, small: bool) -> tuple[list[str], str]:
    """Options of the evaluation of `row`, and the name of what it writes."""
    if table is TABLES["figure3"]:
        return [], loss_all.NAME
    settings = RECIPES[recipe].recipe
    options = words(changed(row.test(settings, SMALL_M if small else PAPER_M), settings.test, "test."))
    name = "-".join([table.metric, *(word.removeprefix("--test.") for word in options)])
    if row.data in SERVER and not small:
        return [*options, "--data", place.server()], f"submission-{name}"
    # The loss does not depend on the test: told once.
    return ["--metric", table.metric, *(options or ["--loss"])], f"eval-{name}.json"


def _given(words: Sequence[str], option: str) -> str:
    """What `option` is given as, "" where it is not."""
    separate = " ".join(words).replace("=", " ").split()
    return next((after for word, after in pairwise(separate) if word == option), "")
