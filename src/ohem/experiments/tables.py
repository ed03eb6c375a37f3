"""The rows of the paper's tables: which training, which test, and the paper's figures beside."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ohem.training.config import Recipe, TestConfig


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a table.

    Args:
        label: as in the paper.
        data: what it is trained on, a key of `recipes.DATA`.
        variant: how it is trained, as recipes are named.
        paper: network -> the paper's mAP, or AP of COCO; None where it has no figure.
        scales: tested at several scales (M); None as the recipe is.
        boxes: tested with relocated boxes and voting (B); None as the recipe is.
    """

    label: str
    data: str
    variant: str
    paper: Mapping[str, float | None]
    scales: bool | None = None
    boxes: bool | None = None

    def test(self, recipe: Recipe, scales: tuple[int, ...]) -> TestConfig:
        """How it is tested, where it is trained by `recipe` and M is `scales`."""
        test = recipe.test
        if self.scales is not None:
            plain = (recipe.data.short,) if test.scales else ()
            test = replace(test, scales=scales if self.scales else plain)
        if self.boxes is not None:
            test = replace(test, iterations=2 if self.boxes else 1, voting=self.boxes)
        return test


@dataclass(frozen=True)
class PaperTable:
    """A table: its rows, the metric of its figures, and whether it has those of each class."""

    title: str
    rows: tuple[Row, ...]
    metric: str = "voc07"
    by_class: bool = False


def _vgg16(figure: float | None) -> dict[str, float | None]:
    return {"vgg16": figure}


def _table6() -> tuple[Row, ...]:
    """M in training, M in testing, B: each on or off; the figures of FRCN and OHEM."""
    figures = {
        (False, False, False): (67.2, 69.9),
        (False, True, False): (68.4, 71.1),
        (False, False, True): (70.8, 72.7),
        (False, True, True): (71.9, 74.1),
        (True, False, False): (67.7, 70.7),
        (True, True, False): (68.6, 71.9),
        (True, False, True): (71.2, 72.9),
        (True, True, True): (72.4, 75.1),
    }
    rows = []
    for (train, test, boxes), both in figures.items():
        names = [name for name, on in (("M train", train), ("M test", test), ("B", boxes)) if on]
        for arm, figure in zip(("FRCN", "OHEM"), both, strict=True):
            label, variant = ", ".join([arm, *names]), arm.lower() + ("-mb" if train else "")
            rows.append(Row(label, "voc07", variant, _vgg16(figure), test, boxes))
    return tuple(rows)


TABLES: dict[str, PaperTable] = {
    "table1": PaperTable(
        "Table 1: hard mining by heuristics, all RoIs, and OHEM",
        (
            Row("FRCN, N = 2, bg_lo 0.1", "voc07", "frcn", {"vggm": 59.6, "vgg16": 67.2}),
            Row("FRCN, N = 2, bg_lo 0", "voc07", "frcn-bg0", {"vggm": 57.2, "vgg16": 67.5}),
            Row("FRCN, N = 1, bg_lo 0.1", "voc07", "frcn-n1", _vgg16(66.3)),
            Row("FRCN, N = 1, bg_lo 0", "voc07", "frcn-n1-bg0", _vgg16(66.3)),
            Row("all RoIs, B = 2048, N = 1", "voc07", "all-n1", {"vggm": 57.7, "vgg16": 67.5}),
            Row("all RoIs, B = 2048, N = 2", "voc07", "all", {"vggm": 60.4, "vgg16": 68.7}),
            Row("OHEM, N = 1", "voc07", "ohem-n1", _vgg16(69.7)),
            Row("OHEM, N = 2", "voc07", "ohem", {"vggm": 62.0, "vgg16": 69.9}),
        ),
    ),
    "table3": PaperTable(
        "Table 3: VOC 2007 test",
        (
            Row("FRCN, 07", "voc07", "frcn", _vgg16(67.2)),
            Row("OHEM, 07", "voc07", "ohem", _vgg16(69.9)),
            Row("FRCN + M + B, 07", "voc07", "frcn-mb", _vgg16(72.4)),
            Row("OHEM + M + B, 07", "voc07", "ohem-mb", _vgg16(75.1)),
            Row("FRCN, 07+12", "voc0712", "frcn", _vgg16(70.0)),
            Row("OHEM, 07+12", "voc0712", "ohem", _vgg16(74.6)),
            Row("OHEM + M + B, 07+12", "voc0712", "ohem-mb", _vgg16(78.9)),
        ),
        by_class=True,
    ),
    "table4": PaperTable(
        "Table 4: VOC 2012 test",
        (
            Row("FRCN, 12", "voc12", "frcn", _vgg16(65.7)),
            Row("OHEM, 12", "voc12", "ohem", _vgg16(69.8)),
            Row("OHEM + M + B, 12", "voc12", "ohem-mb", _vgg16(72.9)),
            Row("FRCN, 07++12", "voc0712test", "frcn", _vgg16(68.4)),
            Row("OHEM, 07++12", "voc0712test", "ohem", _vgg16(71.9)),
            Row("OHEM + M + B, 07++12", "voc0712test", "ohem-mb", _vgg16(76.3)),
        ),
        "voc10",
        by_class=True,
    ),
    "table5": PaperTable(
        "Table 5: COCO 2015, AP (the paper's on test-dev)",
        (
            Row("FRCN, train", "coco", "frcn", _vgg16(19.7)),
            Row("OHEM, train", "coco", "ohem", _vgg16(22.6)),
            Row("OHEM + M, train", "coco", "ohem-m", _vgg16(24.4)),
            Row("OHEM + M, trainval", "cocotrainval", "ohem-m", _vgg16(25.5)),
        ),
        "coco",
    ),
    "table6": PaperTable("Table 6: multi-scale (M) and iterative box regression with voting (B)", _table6()),
    "figure3": PaperTable(
        "Figure 3: mean loss per RoI over all RoIs of trainval",
        (
            Row("FRCN, bg_lo 0.1", "voc07", "frcn", _vgg16(None)),
            Row("FRCN, bg_lo 0", "voc07", "frcn-bg0", _vgg16(None)),
            Row("all RoIs, B = 2048", "voc07", "all", _vgg16(None)),
            Row("OHEM", "voc07", "ohem", _vgg16(None)),
        ),
    ),
}
