"""Charts: what they contain, and that the same data give the same bytes."""

import sys
from pathlib import Path

import pytest
from defusedxml import ElementTree
from PIL import Image

from ohem.errors import InputError
from ohem.experiments.charts import COLOURS, gain_chart, line_chart, loss_curves, map_chart, mean_line, save, svg

METHODS = {"heuristic": [[(20, 0.5), (40, 0.3)]], "OHEM": [[(20, 0.4), (40, 0.2)], [(20, 0.6), (40, 0.1)]]}


def test_mean_line_has_the_points_that_all_lines_have() -> None:
    assert mean_line([[(1, 2.0), (2, 4.0), (3, 9.0)], [(2, 6.0), (3, 1.0), (4, 0.0)]]) == [(2, 5.0), (3, 5.0)]
    line = [(1, 2.0), (5, 3.0)]
    assert mean_line([line]) == line
    assert mean_line([]) == []


def test_method_with_several_runs_has_a_line_for_every_run_and_for_the_mean() -> None:
    (axes,) = loss_curves(METHODS).axes
    drawn = [(line.get_color(), list(zip(*line.get_data(), strict=True))) for line in axes.lines]
    one, other, mean = METHODS["OHEM"][0], METHODS["OHEM"][1], [(20, pytest.approx(0.5)), (40, pytest.approx(0.15))]
    assert drawn == [(COLOURS[0], METHODS["heuristic"][0]), (COLOURS[1], one), (COLOURS[1], other), (COLOURS[1], mean)]
    widths = [line.get_linewidth() for line in axes.lines]
    assert max(widths[1:3]) < min(widths[0], widths[3])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(METHODS)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("SGD step", "mean loss per RoI (all RoIs)")
    assert axes.get_ylim()[0] == 0


def test_runs_of_other_seconds_have_the_mean_that_is_given() -> None:
    runs, mean = [[(0, 0), (10, 20.0)], [(0, 0), (30, 40.0)]], [(0, 0), (20, 30.0)]
    (axes,) = map_chart({"OHEM": runs}, {"OHEM": mean}, x="seconds", target=25.0, base="_a").axes
    *drawn, target = axes.lines
    assert [list(zip(*line.get_data(), strict=True)) for line in drawn] == [*runs, mean]
    assert set(target.get_ydata()) == {25.0}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["OHEM", "final mAP of _a"]


def test_more_methods_than_colours_differ_in_style() -> None:
    (axes,) = line_chart({str(i): [[(0, i), (1, i)]] for i in range(2 * len(COLOURS))}, x="x", y="y").axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 2 * len(COLOURS)


def test_chart_without_methods_is_empty() -> None:
    assert svg(line_chart({}, x="x", y="y")).startswith("<svg")
    assert svg(loss_curves({"no run": []})).startswith("<svg")


def test_svg_is_one_element_and_always_the_same() -> None:
    text = svg(loss_curves(METHODS))
    assert text == svg(loss_curves(METHODS))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {"SGD step", "mean loss per RoI (all RoIs)", *METHODS}
    assert not list(root.iter("{http://www.w3.org/2000/svg}metadata"))
    assert text != svg(loss_curves({"OHEM": METHODS["OHEM"]}))


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_chart_files_are_always_the_same(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        save(loss_curves(METHODS), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == ".png":
        with Image.open(paths[0]) as image:
            assert image.size == (1050, 675)
    else:
        assert paths[0].read_text(encoding="utf-8") == svg(loss_curves(METHODS))


def test_missing_matplotlib_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'pip install "ohem\[experiments\]"'):
        line_chart(METHODS, x="x", y="y")


def test_gain_that_rounds_to_zero_has_no_sign() -> None:
    (axes,) = gain_chart([("king", 1.25), ("queen", -0.04), ("jack", -2.0)]).axes
    assert [text.get_text() for text in axes.texts] == ["+1.2", "0.0", "-2.0"]
