"""The page of a comparison."""

from dataclasses import replace
from pathlib import Path

import pytest

from ohem.config.schema import DataConfig
from ohem.evaluation.time_to_map import CurvePoint
from ohem.experiments.html_report import MAX_POINTS, MIN_POINTS, STATISTICS, format_statistic, smoothed, write_page
from ohem.experiments.results import MethodSummary, RunResult
from ohem.training.logs.metrics_log import COLUMNS


def summary(name: str, *maps: float, points: int = MIN_POINTS, ap: float = 50.0, **mined: float) -> MethodSummary:
    curve = [(10 * i, 1.0) for i in range(points)]
    runs = [RunResult(value, {"king": ap}, 0.1, 0.5, mined, curve) for value in maps]
    return MethodSummary(name, f"what {name} does", runs)


def page(folder: Path, *summaries: MethodSummary) -> str:
    """Returns the page, with single spaces."""
    write_page(folder / "page.html", summaries, [["train", "run"]], DataConfig(train=("a",), test=("b",)))
    return " ".join((folder / "page.html").read_text(encoding="utf-8").split())


def test_few_points_are_not_averaged() -> None:
    curve = [(10 * i, float(i)) for i in range(MAX_POINTS)]
    assert smoothed(curve) == curve
    assert smoothed([]) == []


def test_many_points_are_averaged_in_order() -> None:
    curve = [(i, float(i % 2)) for i in range(2 * MAX_POINTS)]
    assert smoothed(curve) == [(2 * i + 0.5, 0.5) for i in range(MAX_POINTS)]


def test_every_method_is_described(tmp_path: Path) -> None:
    text = page(tmp_path, summary("frcn", 50.0), summary("ohem", 60.0))
    assert "<dt>frcn</dt><dd>what frcn does</dd>" in text
    assert "<dt>ohem</dt><dd>what ohem does</dd>" in text


def test_short_runs_have_no_training_curve(tmp_path: Path) -> None:
    long, short = summary("frcn", 50.0), summary("ohem", 60.0, points=MIN_POINTS - 1)
    assert page(tmp_path, long, long).count("<svg") == 2
    text = page(tmp_path, long, short)
    assert text.count("<svg") == 1
    assert "metrics.csv has 4 rows, too few for a curve" in text


def test_untrained_methods_are_not_compared(tmp_path: Path) -> None:
    text = page(tmp_path, summary("frcn", 4.0, 4.5), summary("ohem", 0.5, 1.0))
    assert "<strong>not trained yet: train longer before comparing</strong> (mAP 0.8 and 4.2, both below 5)" in text
    assert "confidence" not in text
    assert "Gain of" not in text


def test_one_trained_method_is_enough_to_compare(tmp_path: Path) -> None:
    text = page(tmp_path, summary("frcn", 4.0, 4.5), summary("ohem", 60.0, 60.1))
    assert "<strong>better</strong>" in text
    assert "Gain of ohem over frcn per class" in text


def test_zero_has_no_sign(tmp_path: Path) -> None:
    text = page(tmp_path, summary("frcn", 50.0, 50.0), summary("ohem", 49.97, 49.99, ap=49.97))
    assert "-0.0" not in text
    assert "+0.0" not in text


def test_chosen_rois_have_the_names_of_metrics_csv_and_a_legend(tmp_path: Path) -> None:
    assert set(STATISTICS) - set(COLUMNS) == {"set_aside"}  # of one sampler: its column comes after the others
    base = summary("frcn", 50.0, rois=2000.0, chosen=128.0, far=0.0)
    text = page(tmp_path, base, summary("ohem", 60.0, rois=2000.0, chosen=128.0, far=0.445, loss_all=0.25))
    assert "<th>method</th><th>rois</th><th>chosen</th><th>far</th><th>loss_all</th>" in text
    assert "<td>frcn</td><td>2000</td><td>128</td><td>0 %</td><td></td>" in text
    assert "<td>ohem</td><td>2000</td><td>128</td><td>44 %</td><td>0.250</td>" in text
    assert f"<dt>far</dt><dd>{STATISTICS['far']}</dd>" in text
    assert "<dt>survivors</dt>" not in text
    assert "Chosen RoIs" not in page(tmp_path, summary("builtin", 50.0), summary("ratio", 60.0))


def with_curve(method: MethodSummary, *points: tuple[float, float, float]) -> MethodSummary:
    curve = [CurvePoint(*point) for point in points]
    return replace(method, runs=[replace(run, map_curve=curve) for run in method.runs])


def test_curve_of_map_has_two_charts_and_a_definition(tmp_path: Path) -> None:
    base = with_curve(summary("frcn", 50.0, points=1), (5, 100, 10.0), (10, 200, 50.0))
    fast = with_curve(summary("ohem", 60.0, points=1), (5, 150, 75.0), (10, 300, 60.0))
    text = page(tmp_path, base, fast)
    assert text.count("<svg") == 3
    assert "seconds of training</text>" in text
    assert "final mAP of frcn</text>" in text
    assert "<td>ohem</td><td>100.0</td><td>3</td><td>0.50</td>" in text
    assert "on straight lines between the evaluated steps, from an mAP of 0 at step 0" in text
    assert "The time to" not in text


def test_method_without_a_curve_is_named(tmp_path: Path) -> None:
    base = with_curve(summary("frcn", 50.0, points=1), (5, 100, 10.0), (10, 200, 50.0))
    text = page(tmp_path, base, with_curve(summary("ohem", 60.0, points=1), (10, 300, 60.0)))
    assert text.count("<svg") == 3
    assert "The time to the final mAP of frcn is unknown for ohem: no snapshot was evaluated" in text
    text = page(tmp_path, summary("frcn", 50.0, points=1), summary("ohem", 60.0, points=1))
    assert text.count("<svg") == 1
    assert "is unknown for frcn, ohem: no snapshot was evaluated" in text


def test_what_was_mined_among_anchors_has_columns(tmp_path: Path) -> None:
    text = page(tmp_path, summary("frcn", 50.0, rois=1.0), summary("ohem-rpn", 60.0, rois=1.0, rpn_chosen=256.0))
    assert "<th>rpn_chosen</th>" in text
    assert "<td>256</td>" in text
    assert f"of the anchors: {STATISTICS['chosen']}" in text
    assert "rpn_" not in page(tmp_path, summary("frcn", 50.0, rois=1.0), summary("ohem", 60.0, rois=1.0))


def test_wide_content_scrolls_in_its_own_box(tmp_path: Path) -> None:
    text = page(tmp_path, summary("frcn", 50.0, rois=1.0), summary("ohem", 60.0, rois=1.0))
    assert text.count("<table>") == text.count('<div class="scroll"> <table>') == 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("far", 0.126, "13 %"),
        ("rpn_far", 0.126, "13 %"),
        ("loss_all", 0.12345, "0.123"),
        ("rois", 1999.6, "2000"),
        ("survivors", None, ""),
    ],
)
def test_statistics_are_formatted_by_their_kind(name: str, value: float | None, text: str) -> None:
    assert format_statistic(name, value) == text
