"""Names that users give to classes, runs and folders are printed unchanged everywhere."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.table import Table

from ohem.bootstrap.run import _table as table_of_svms
from ohem.config.recipes import RECIPES
from ohem.config.resolve import parse_options
from ohem.config.schema import DataConfig
from ohem.data.coco import COCODetection
from ohem.data.voc import VOCDetection
from ohem.detection.draw import draw_detections
from ohem.evaluation.score_report import score
from ohem.experiments.charts import gain_chart, line_chart, save, svg
from ohem.experiments.commands import option_arguments
from ohem.experiments.compare_report import comparison_table, gains_table
from ohem.experiments.html_report import write_page
from ohem.experiments.methods import parse_method
from ohem.experiments.results import MethodSummary, RunResult
from ohem.io.console import escape_what_the_encoding_lacks, make_console
from ohem.io.progress import tracked
from tests.helpers.datasets import annotation, make_voc, write_coco, write_noise

NAMES = [
    "king [front]",
    "[/b]",
    "[red]x",
    "[bold",
    ":smile:",
    "$x_1$",
    "a^b_c",
    r"\frac",
    "<b>&amp;'\"",
    "x, y",
    "{0} {x} %s",
    "_hidden",
    "猫",
    "שלום",
    "-1",
    "--data.short",
    "w" * 90,
]


def summary(name: str, classes: dict[str, float]) -> MethodSummary:
    run = RunResult(50.0, classes, 0.1, 0.5, {}, [(1, 2.0), (2, 1.0)])
    return MethodSummary(name, f"about {name}", [run, run])


def printed(*tables: Table) -> str:
    """Returns the text of the tables, printed so wide that no cell is folded."""
    console = make_console()
    console.file, console.width = io.StringIO(), 400
    console.print(*tables)
    return console.file.getvalue()


def narrow(*tables: Table) -> str:
    """Returns the tables as a terminal of 80 columns prints them."""
    console = make_console()
    console.file, console.width = io.StringIO(), 80
    console.print(*tables)
    return console.file.getvalue()


def test_long_names_that_differ_at_their_end_are_not_cut() -> None:
    first, second = "w" * 90 + "A", "w" * 90 + "B"
    base, other = summary("base", {first: 40.0, second: 30.0}), summary("other", {first: 60.0, second: 70.0})
    targets = {first: None, second: None}
    for table in (gains_table(other, base), table_of_svms(targets)):
        text = narrow(table)
        assert "…" not in text
        assert (text.count("A"), text.count("B"), text.count("w")) == (1 + ("AP" in text), 1, 180)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_of_any_encoding_takes_every_name(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    escape_what_the_encoding_lacks()
    for name in [*NAMES, "\udcff"]:
        print(name)
        make_console().print(table_of_svms({name: None}))
    sys.stdout.flush()
    assert "king [front]" in raw.getvalue().decode(encoding)


@pytest.mark.parametrize("name", ["True", "False"])
def test_class_may_have_the_name_of_a_flag_value(name: str) -> None:
    arguments = [*option_arguments("data.classes", [name]), *option_arguments("data.flip", ["False"])]
    recipe = parse_options(arguments, RECIPES["demo-ohem"].recipe)
    assert (recipe.data.classes, recipe.data.flip) == ((name,), False)


def voc_of(name: str, folder: Path) -> VOCDetection:
    written = name.replace("&", "&amp;").replace("<", "&lt;")
    make_voc(folder, {"a": (30, 40, [(written, 3, 5, 10, 20, 0)])}, {"test": ["a"]})
    return VOCDetection(f"{folder}:test")


def coco_of(name: str, folder: Path) -> COCODetection:
    images = {"a.png": (1, 30, 40)}
    write_coco(folder / "a.json", images, [annotation(1, 1, [3, 5, 10, 20])], {name: 1})
    write_noise(folder, images)
    return COCODetection(f"{folder / 'a.json'}:{folder}")


@pytest.mark.parametrize("metric", ["voc07", "coco"])
@pytest.mark.parametrize("make", [voc_of, coco_of])
@pytest.mark.parametrize("name", NAMES)
def test_scores(name: str, make: Callable[..., Any], metric: Any, tmp_path: Path) -> None:
    data = make(name, tmp_path)
    actual = [{"boxes": torch.tensor([[3.0, 5, 10, 20]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}]
    figures, table = score(actual, data, metric)
    assert list(figures["ap"]) == [name]
    assert metric == "coco" or name in printed(table)


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_a_comparison(name: str) -> None:
    base, other = summary("base", {name: 40.0}), summary(name, {name: 60.0})
    assert printed(gains_table(other, base)).count(name) == 3  # title, head of a column, class
    assert name in printed(comparison_table([base, other]))
    assert name in printed(table_of_svms({name: None}))


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize("name", NAMES)
def test_charts(name: str, tmp_path: Path) -> None:
    lines, bars = line_chart({name: [[(1, 2.0), (2, 1.0)]]}, x="step", y="loss"), gain_chart([(name, 3.0)])
    for chart in (lines, bars):
        texts = ["".join(item.itertext()) for item in ElementTree.fromstring(svg(chart)).iter() if _is_text(item)]
        assert name in "".join(text.strip("\u200b\n ") for text in texts), texts
    save(bars, tmp_path / "bars.png")


def _is_text(element: ElementTree.Element) -> bool:
    return element.tag.rpartition("}")[2] == "text"


@pytest.mark.parametrize("name", NAMES)
def test_page(name: str, tmp_path: Path) -> None:
    base, other = summary("base", {name: 40.0}), summary(name, {name: 60.0})
    path = tmp_path / "page.html"
    write_page(path, [base, other], [["train", "run", "--data.classes", name]], DataConfig(train=(name,), test=(name,)))
    text = path.read_text(encoding="utf-8")
    assert text.count(_escaped(name)) >= 6
    assert name == _escaped(name) or name not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def _escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        text = text.replace(character, entity)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_progress(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    assert draw_detections(image, torch.tensor([[5.0, 20, 60, 50]]), [name], [0.5]).any()
    assert list(tracked([1, 2], name)) == [1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_command_lines(name: str) -> None:
    arguments = option_arguments("data.classes", ["cat", name])
    assert parse_options(arguments, RECIPES["demo-ohem"].recipe).data.classes == ("cat", name)


@pytest.mark.parametrize("value", ["a/b", "../x", "/etc", "a b", "x:y", "*"])
def test_folders_of_methods_stay_in_the_folder_of_the_comparison(value: str) -> None:
    name = parse_method(f"ohem,data.classes={value}", RECIPES["demo-ohem"].recipe).name
    assert Path(name).name == name
    assert name not in (".", "..")
