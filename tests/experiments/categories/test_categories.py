"""The study by class: its facts counted by hand, and its sentences, chart and JSON."""

import json
from pathlib import Path

import pytest

from ohem.data.sources import open_dataset
from ohem.experiments.categories.facts import Category, correlations, describe_categories
from ohem.experiments.categories.report import as_json, by_gain, category_chart, category_table, sentences
from ohem.experiments.charts import svg
from ohem.experiments.results import RunResult
from ohem.experiments.significance import mean_of, paired
from tests.helpers.toy_data import make_toy

parquet = pytest.importorskip("pyarrow.parquet")


def result(background: dict[str, float | None] | None = None, **ap: float | None) -> RunResult:
    return RunResult(50.0, ap, None, 1.0, {}, [], background=background or {})


def write_log(run: Path, labels: list[list[int]], rows: list[tuple[int, int]]) -> Path:
    """Writes a mining log of periods with these `labels`, and rows (label, taken for)."""
    import pyarrow

    from ohem.mining_log.tables import TABLES

    (run / "mining").mkdir(parents=True)
    columns = {
        "rows": dict.fromkeys(TABLES["rows"], [0] * len(rows))
        | {"label": [label for label, _ in rows], "taken_for": [taken for _, taken in rows]},
        "periods": dict.fromkeys(TABLES["periods"], [0] * len(labels)) | {"labels": labels},
    }
    for name, table in columns.items():
        parquet.write_table(pyarrow.table(table), run / "mining" / f"{name}.parquet")
    return run


def test_facts_by_hand(tmp_path: Path) -> None:
    """Toy images are 80 x 64 pixels, and have a blue and a red object of 20 x 24 each."""
    train = open_dataset([f"{make_toy(tmp_path / 'toy')}:train"])
    runs = [
        # Class 1 has 30 of 100 chosen RoIs, then 10 of 40; 3 of 4 background rows were taken for it.
        write_log(tmp_path / "a", [[40, 20, 10], [20, 10]], [(0, 1), (0, 1), (0, 1), (0, 2), (1, 2), (0, -1)]),
        write_log(tmp_path / "b", [[30, 10]], [(0, 2)]),
        tmp_path,  # a run without a log
    ]
    base = [result({"blue": 0.25, "red": None}, blue=60.0, red=50.0), result({"blue": 0.75}, blue=64.0, red=50.0)]
    ohem = [result(blue=70.0, red=None), result(blue=72.0, red=48.0)]
    blue, red = describe_categories(train, base, ohem, runs)
    assert (blue.name, red.name) == ("blue", "red")
    assert blue.objects == red.objects == 6
    assert blue.size == pytest.approx(100 * (20 * 24 / (80 * 64)) ** 0.5)
    assert (blue.background, red.background) == (50, None)
    assert blue.mined == pytest.approx((30 + 25) / 2)
    assert blue.taken_for == pytest.approx((75 + 0) / 2)
    assert red.taken_for == pytest.approx((25 + 100) / 2)
    assert blue.gain is not None
    assert blue.gain.mean == pytest.approx(9)
    assert red.gain is None  # one seed has no test object


def category(name: str, objects: int, gain: float | None) -> Category:
    return Category(
        name, objects, 10.0, None, None, None,
        base_ap=mean_of([50.0]), ap=mean_of([50.0]), gain=None if gain is None else paired([gain], [0.0]),
    )  # fmt: skip


CLASSES = [category("a_$b", 1, 1.0), *(category(name, n, float(n)) for n, name in enumerate("cdefg", start=2))]


def test_a_gain_that_falls_with_a_property_is_reported() -> None:
    assert [one.name for one in by_gain([*CLASSES[:2], category("none", 3, None)])] == ["c", "a_$b", "none"]
    computed = correlations(CLASSES)
    assert computed["objects"] is not None
    assert computed["objects"].rho == pytest.approx(1)
    assert computed["size"] is None  # all are of one size
    assert computed["mined"] is None  # not known
    text = sentences(CLASSES)
    assert text[0].startswith("gain and training objects: related (rank correlation +1.00, p = 0.00")
    assert "no correlation is computed" in text[1]
    weak = [category(str(n), n, gain) for n, gain in enumerate([3.0, 1.0, 2.0, 4.0])]
    assert "no relation is visible" in sentences(weak)[0]


def test_outputs_hold_all_classes() -> None:
    assert category_table(CLASSES, "gains").row_count == len(CLASSES)
    content = as_json(CLASSES)
    assert json.loads(json.dumps(content, allow_nan=False)) == content  # of one seed, intervals are not known
    assert [one["name"] for one in content["classes"]] == ["g", "f", "e", "d", "c", "a_$b"]
    text = svg(category_chart({"small": CLASSES}))
    assert all(one.name in text for one in CLASSES)
    several = svg(category_chart({"vggm": CLASSES, "vgg16": CLASSES}))
    assert "vggm" not in text
    assert "vggm" in several
