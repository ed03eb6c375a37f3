"""The results in the paper's tables, and the training and the test of each row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ohem.config.schema import Recipe, TestConfig

# Training data -> network -> method -> mAP, or AP of COCO. -m and -mb are the paper's M and M + B.
FIGURES: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "voc07": {
        "vgg16": {
            "frcn": 67.2,
            "frcn-bg0": 67.5,
            "frcn-n1": 66.3,
            "frcn-n1-bg0": 66.3,
            "all-n1": 67.5,
            "all": 68.7,
            "ohem-n1": 69.7,
            "ohem": 69.9,
            "frcn-mb": 72.4,
            "ohem-mb": 75.1,
        },
        "vggm": {"frcn": 59.6, "frcn-bg0": 57.2, "all-n1": 57.7, "all": 60.4, "ohem": 62.0},
    },
    "voc0712": {"vgg16": {"frcn": 70.0, "ohem": 74.6, "mr-cnn-mb": 78.2, "ohem-mb": 78.9}},
    "voc12": {"vgg16": {"frcn": 65.7, "ohem": 69.8, "ohem-mb": 72.9}},
    "voc0712test": {"vgg16": {"frcn": 68.4, "ohem": 71.9, "ohem-mb": 76.3}},
    "coco": {"vgg16": {"frcn": 19.7, "ohem": 22.6, "ohem-m": 24.4}},
    "cocotrainval": {"vgg16": {"ohem-m": 25.5}},
}
# Table 6: M in training, M in testing, B -> mAP of FRCN and OHEM, for rows whose test is not that of a recipe.
TABLE6: Mapping[tuple[bool, bool, bool], tuple[float, float] | None] = {
    (False, False, False): None,  # in FIGURES
    (False, True, False): (68.4, 71.1),
    (False, False, True): (70.8, 72.7),
    (False, True, True): (71.9, 74.1),
    (True, False, False): (67.7, 70.7),
    (True, True, False): (68.6, 71.9),
    (True, False, True): (71.2, 72.9),
    (True, True, True): None,  # in FIGURES
}


class StepFigures(NamedTuple):
    """Cost of a training step on a Titan X (table 2)."""

    seconds: float
    memory: float
    """Memory in GB."""


TABLE2: Mapping[str, Mapping[str, StepFigures]] = {
    "vgg_cnn_m_1024": {"frcn": StepFigures(0.13, 2.6), "ohem": StepFigures(0.22, 3.6)},
    "vgg16": {
        "frcn": StepFigures(0.60, 11.2),
        "frcn-accumulate": StepFigures(0.57, 6.4),
        "ohem-accumulate": StepFigures(1.00, 8.7),
    },
}


@dataclass(frozen=True, eq=False)
class TableRow:
    """A row of a table.

    Args:
        label: label of the row, as in the paper.
        data: training data, a key of `FIGURES`.
        method: method of the training, a key of `METHODS`, with the suffix -m or -mb for M or M + B.
        scales: whether the test uses several scales (M); None uses the value of the recipe.
        boxes: whether the test uses iterative box regression and voting (B); None uses the value of the recipe.
        figure: mAP of VGG16 in the paper, if it is not that of the recipe.
    """

    label: str
    data: str
    method: str
    scales: bool | None = None
    boxes: bool | None = None
    figure: float | None = None

    def paper(self, network: str) -> float | None:
        """Returns the mAP or AP in the paper; None if the paper has none."""
        return self.figure or FIGURES[self.data].get(network, {}).get(self.method)

    def test(self, recipe: Recipe, scales: tuple[int, ...]) -> TestConfig:
        """Returns the test options of this row for a detector trained by `recipe`; `scales` are the scales of M."""
        test = recipe.test
        if self.scales is not None:
            single = (recipe.data.short,) if test.scales else ()
            test = replace(test, scales=scales if self.scales else single)
        if self.boxes is not None:
            test = replace(test, iterations=2 if self.boxes else 1, voting=self.boxes)
        return test


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Args:
        title: title of the table.
        rows: rows from top to bottom.
        metric: metric of the figures.
        by_class: whether the paper gives the AP of each class.
        networks: networks of the figures.
    """

    title: str
    rows: tuple[TableRow, ...]
    metric: str = "voc07"
    by_class: bool = False
    networks: tuple[str, ...] = ("vgg16",)

    def networks_of(self, row: TableRow) -> tuple[str, ...]:
        """Returns the networks that `row` was trained with."""
        return tuple(name for name in self.networks if row.paper(name) is not None)


def _table6() -> tuple[TableRow, ...]:
    rows = []
    for (train, test, boxes), figures in TABLE6.items():
        names = [name for name, on in (("M train", train), ("M test", test), ("B", boxes)) if on]
        for method, figure in zip(("FRCN", "OHEM"), figures or (None, None), strict=True):
            label, trained = ", ".join([method, *names]), method.lower() + ("-mb" if train else "")
            rows.append(TableRow(label, "voc07", trained, test, boxes, figure))
    return tuple(rows)


def _rows(title: str, data: str, methods: Mapping[str, str]) -> Iterator[TableRow]:
    """Yields a row for each label of `methods`; `title` is the paper's name of the training data."""
    for label, method in methods.items():
        yield TableRow(f"{label}, {title}", data, method)


FRCN_OHEM_MB = {"FRCN": "frcn", "OHEM": "ohem", "OHEM + M + B": "ohem-mb"}
TABLES: dict[str, PaperTable] = {
    "table1": PaperTable(
        "Table 1: hard mining by heuristics, all RoIs, and OHEM",
        (
            TableRow("FRCN, N = 2, bg_lo 0.1", "voc07", "frcn"),
            TableRow("FRCN, N = 2, bg_lo 0", "voc07", "frcn-bg0"),
            TableRow("FRCN, N = 1, bg_lo 0.1", "voc07", "frcn-n1"),
            TableRow("FRCN, N = 1, bg_lo 0", "voc07", "frcn-n1-bg0"),
            TableRow("all RoIs, B = 2048, N = 1", "voc07", "all-n1"),
            TableRow("all RoIs, B = 2048, N = 2", "voc07", "all"),
            TableRow("OHEM, N = 1", "voc07", "ohem-n1"),
            TableRow("OHEM, N = 2", "voc07", "ohem"),
        ),
        networks=("vggm", "vgg16"),
    ),
    "table3": PaperTable(
        "Table 3: VOC 2007 test",
        (
            *_rows(
                "07", "voc07", {"FRCN": "frcn", "OHEM": "ohem", "FRCN + M + B": "frcn-mb", "OHEM + M + B": "ohem-mb"}
            ),
            *_rows(
                "07+12",
                "voc0712",
                {"FRCN": "frcn", "OHEM": "ohem", "MR-CNN + M + B": "mr-cnn-mb", "OHEM + M + B": "ohem-mb"},
            ),
        ),
        by_class=True,
    ),
    "table4": PaperTable(
        "Table 4: VOC 2012 test",
        (*_rows("12", "voc12", FRCN_OHEM_MB), *_rows("07++12", "voc0712test", FRCN_OHEM_MB)),
        "voc10",
        by_class=True,
    ),
    "table5": PaperTable(
        "Table 5: COCO 2015, AP (the paper's on test-dev)",
        (
            *_rows("train", "coco", {"FRCN": "frcn", "OHEM": "ohem", "OHEM + M": "ohem-m"}),
            *_rows("trainval", "cocotrainval", {"OHEM + M": "ohem-m"}),
        ),
        "coco",
    ),
    "table6": PaperTable("Table 6: multi-scale (M) and iterative box regression with voting (B)", _table6()),
    "figure3": PaperTable(
        "Figure 3: mean loss per RoI over all RoIs of trainval",
        (
            TableRow("FRCN, bg_lo 0.1", "voc07", "frcn"),
            TableRow("FRCN, bg_lo 0", "voc07", "frcn-bg0"),
            TableRow("all RoIs, B = 2048", "voc07", "all"),
            TableRow("OHEM", "voc07", "ohem"),
        ),
    ),
    "categories": PaperTable(
        "Gain of OHEM by class",
        (TableRow("FRCN, bg_lo 0.1", "voc07", "frcn"), TableRow("OHEM", "voc07", "ohem")),
        networks=("vggm", "vgg16"),
    ),
}
