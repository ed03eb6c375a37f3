"""The figures and recipes of the paper, against values that were copied by hand from its tables."""

import pytest

from ohem.config.methods import METHODS
from ohem.config.paper import FIGURES, TABLE2, TABLES, TableRow
from ohem.config.recipes import PAPER_M, RECIPES

PAPER = {name for name, entry in RECIPES.items() if entry.paper is not None}


def row_of(table: str, label: str) -> TableRow:
    return next(row for row in TABLES[table].rows if row.label == label)


@pytest.mark.parametrize(
    ("table", "label", "network", "figure"),
    [
        ("table1", "FRCN, N = 2, bg_lo 0.1", "vggm", 59.6),
        ("table1", "FRCN, N = 2, bg_lo 0.1", "vgg16", 67.2),
        ("table1", "OHEM, N = 2", "vggm", 62.0),
        ("table1", "OHEM, N = 2", "vgg16", 69.9),
        ("table1", "OHEM, N = 1", "vggm", None),
        ("table3", "OHEM + M + B, 07+12", "vgg16", 78.9),
        ("table3", "MR-CNN + M + B, 07+12", "vgg16", 78.2),
        ("table4", "OHEM + M + B, 07++12", "vgg16", 76.3),
        ("table5", "OHEM + M, trainval", "vgg16", 25.5),
        ("table6", "OHEM, M test", "vgg16", 71.1),
        ("table6", "FRCN, M train, M test, B", "vgg16", 72.4),
    ],
)
def test_figures_are_those_of_the_paper(table: str, label: str, network: str, figure: float | None) -> None:
    assert row_of(table, label).paper(network) == figure


def test_costs_of_a_step_are_those_of_table_2() -> None:
    assert TABLE2["vgg16"]["frcn-accumulate"] == (0.57, 6.4)
    assert TABLE2["vgg16"]["ohem-accumulate"] == (1.00, 8.7)
    assert TABLE2["vgg_cnn_m_1024"]["ohem"] == (0.22, 3.6)


def test_paper_has_29_recipes() -> None:
    assert len(PAPER) == 29
    assert {
        f"{data}-{network}-{method}"
        for data, networks in FIGURES.items()
        for network, methods in networks.items()
        for method in methods
    } == PAPER


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_recipe_with_its_figure(table: str) -> None:
    for row in TABLES[table].rows:
        networks = TABLES[table].networks_of(row)
        assert networks
        for network in networks:
            entry = RECIPES[f"{row.data}-{network}-{row.method}"]
            assert row.figure is not None or entry.paper == row.paper(network)
        assert row.method.removesuffix("-mb").removesuffix("-m") in METHODS


def test_every_recipe_of_the_paper_is_a_row_of_a_table() -> None:
    rows = {
        f"{row.data}-{network}-{row.method}"
        for table in TABLES.values()
        for row in table.rows
        for network in table.networks_of(row)
    }
    assert rows == PAPER


def test_test_of_a_row_differs_from_that_of_its_recipe() -> None:
    recipe = RECIPES["voc07-vgg16-ohem-mb"].recipe
    single = row_of("table6", "OHEM, M train").test(recipe, PAPER_M)
    assert (single.scales, single.iterations, single.voting) == ((600,), 1, False)
    whole = row_of("table6", "OHEM, M train, M test, B").test(recipe, PAPER_M)
    assert whole == recipe.test
    assert (whole.scales, whole.iterations, whole.voting) == ((480, 576, 688, 864, 1000), 2, True)
    assert row_of("table3", "OHEM + M + B, 07").test(recipe, PAPER_M) == recipe.test
