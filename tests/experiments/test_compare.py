"""`ohem compare` on toy data, as a new user runs it: its results are those of its runs."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest

from ohem.errors import InputError
from ohem.evaluation.time_to_map import CurvePoint
from ohem.experiments.compare_report import as_json, comparison_table, findings, gains_table, time_problem, time_tables
from ohem.experiments.results import MethodSummary, RunResult, read_result
from ohem.training.logs.metrics_log import read_metrics
from tests.fuzz.commands import children_in_this_process
from tests.helpers.command_line import Result, ohem, sentence
from tests.helpers.toy_data import make_toy
from tests.insight.browser import dump_dom, needs_browser
from tests.io.test_locks import another_process


class Comparison(NamedTuple):
    arguments: list[object]
    out: Path
    result: Result


METHODS = ["frcn", "ohem,sampler.nms-iou=0.5"]
NAMES = ["frcn", "ohem-sampler.nms-iou=0.5"]


def compare_arguments(data: Path, out: Path, steps: int = 30, methods: Sequence[str] = METHODS) -> list[object]:
    return [
        *["compare", out, "--recipe", "demo-frcn", "--methods", *methods, "--seeds", 2, "--jobs", 2],
        *["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--data.short", 64, "--data.long", 80],
        *["--solver.steps", steps, "--run.accelerator", "cpu", "--proposals.jobs", 1],
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("compare")
    arguments = compare_arguments(make_toy(folder / "toy"), folder / "out")
    with children_in_this_process():
        return Comparison(arguments, folder / "out", ohem(*arguments))


def _report(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return report


def _methods(done: Comparison) -> list[dict[str, Any]]:
    methods: list[dict[str, Any]] = json.loads((done.out / "compare.json").read_text())["methods"]
    return methods


def _summaries(done: Comparison) -> list[MethodSummary]:
    runs = {name: [done.out / f"{name}-{seed}" for seed in (0, 1)] for name in NAMES}
    return [MethodSummary(name, "", [read_result(run, run / "eval.json") for run in runs[name]]) for name in NAMES]


def test_results_are_those_of_the_runs(done: Comparison) -> None:
    assert done.result.code == 0, done.result
    methods = {method["name"]: method for method in _methods(done)}
    reports = {name: [_report(done.out / f"{name}-{seed}") for seed in (0, 1)] for name in methods}
    assert list(methods) == NAMES
    for name, method in methods.items():
        assert method["maps"] == [report["map"] for report in reports[name]]
        assert method["map"] == pytest.approx(fmean(method["maps"]))
        assert method["loss_all_rois"] == [report["loss_all_rois"] for report in reports[name]]
        assert method["seconds_per_step"] > 0
    base, mined = methods.values()
    assert mined["difference"]["mean"] == pytest.approx(mined["map"] - base["map"])
    for name, gain in mined["difference"]["per_class"].items():
        both = [[report["ap"][name] for report in reports[method]] for method in methods]
        assert gain == pytest.approx(fmean(both[1]) - fmean(both[0]))
    gains = list(mined["difference"]["per_class"].values())
    assert gains == sorted(gains, reverse=True)


def test_methods_differ_only_in_their_sampler(done: Comparison) -> None:
    first, second = ((done.out / f"{name}-1" / "recipe.yaml").read_text().splitlines() for name in NAMES)
    lines = [(a.strip(), b.strip()) for a, b in zip(first, second, strict=True) if a != b]
    changed = [pair for pair in lines if not pair[0].startswith("checksum")]
    assert changed == [("name: random", "name: ohem"), ("nms_iou: null", "nms_iou: 0.5")]


def test_every_finished_run_has_a_line(done: Comparison) -> None:
    lines = [line[7:] for line in done.result.out.splitlines() if re.match(r"\d\d:\d\d  .*: mAP ", line)]
    names = [f"{name}-{seed}" for seed in (0, 1) for name in NAMES]
    assert sorted(line.split(":")[0] for line in lines) == sorted(names)
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.partition(": mAP ")
        left = ", less than 1 min left" if number < 4 else ""
        assert rest == f"{_report(done.out / name)['map']:.1f} ({number} of 4 runs{left})"
    assert f"the output of each run is in its log file, such as {done.out / 'frcn-0.log'}" in done.result.out


def test_methods_are_described_and_the_verdict_is_printed(done: Comparison) -> None:
    methods = _methods(done)
    verdict = methods[1]["difference"]["verdict"]
    assert verdict in ("better", "worse", "within noise")
    assert f"{verdict}. Highest gain of a class: " in done.result.out
    page = (done.out / "compare.html").read_text()
    assert f"<strong>{verdict}</strong>" in page
    assert page.count("<svg") == 3  # two of the mAP; 30 steps have 3 rows in metrics.csv: no training curve
    assert "ohem train" in page
    for method in methods:
        assert f"{method['name']}: {method['about']}." in done.result.out
        assert f"<dd>{method['about']}</dd>" in page


@needs_browser
def test_the_page_fits_a_phone(done: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    page.write_bytes((done.out / "compare.html").read_bytes())
    assert "<title>500</title>" in dump_dom(page, width=500)


def test_curve_of_map_ends_at_the_final_evaluation_and_at_the_sum_of_the_seconds(done: Comparison) -> None:
    methods = _methods(done)
    for method in methods:
        for seed, points in enumerate(method["map_curves"]):
            run = done.out / f"{method['name']}-{seed}"
            assert [point["step"] for point in points] == [4, 8, 12, 16, 20, 24, 28, 30]
            assert points[-1]["map"] == _report(run)["map"]
            means = [float(row["seconds"]) for row in read_metrics(run)]  # each of 10 steps
            assert points[-1]["seconds"] == pytest.approx(10 * sum(means))
            assert points[0]["seconds"] == pytest.approx(4 * means[0])
    base, mined = (method["time_to_map"] for method in methods)
    assert base["map"] == mined["map"] == methods[0]["map"]
    assert base["reached"]
    assert 0 < base["share_of_base_seconds"] <= 1
    assert f"the final mAP of {NAMES[0]}" in done.result.out


def test_page_says_how_many_rois_were_chosen(done: Comparison) -> None:
    page = (done.out / "compare.html").read_text()
    for method in _methods(done):
        chosen, rois = (fmean(run[name] for run in method["mined"]) for name in ("chosen", "rois"))
        (row,) = re.findall(rf"<tr><td>{re.escape(method['name'])}</td>(<td>{rois:.0f}</td>.*)</tr>", page)
        assert f"<td>{chosen:.0f}</td>" in row
    losses = [fmean(run[name] for run in method["mined"]) for name in ("loss_chosen", "loss_all")]
    assert "".join(f"<td>{loss:.3f}</td>" for loss in losses) in row


def test_repeated_command_does_nothing(done: Comparison) -> None:
    files = [path for path in done.out.rglob("*") if path.suffix in (".pt", ".csv") or path.name == "eval.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = ohem(*done.arguments)
    assert again.code == 0
    assert "4 of 4 runs are done already" in again.out
    assert "log file" not in again.out
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_runs_without_snapshots_are_compared_and_not_evaluated_again(done: Comparison) -> None:
    """An earlier version leaves such runs."""
    before = (done.out / "frcn-0" / "eval.json").stat().st_mtime_ns
    for run in done.out.glob("*-[01]"):
        shutil.rmtree(run / "snapshots")
        for name in ("map_curve.json", "map_curve.line"):
            (run / name).unlink()
    with children_in_this_process():
        again = ohem(*done.arguments)
    assert f"The time to the final mAP of frcn is unknown for {', '.join(NAMES)}: no snapshot was" in again.out
    assert [method["time_to_map"] for method in _methods(done)] == [None, None]
    without = ohem(*done.arguments, "--curve", 0)
    assert "4 of 4 runs are done already" in without.out
    assert "--curve 0" in without.out
    assert (done.out / "frcn-0" / "eval.json").stat().st_mtime_ns == before


def test_another_metric_evaluates_again_and_trains_nothing(done: Comparison) -> None:
    before = (done.out / "frcn-0" / "checkpoint.pt").stat().st_mtime_ns
    with children_in_this_process():
        assert ohem(*done.arguments, "--metric", "voc10").code == 0
    assert _report(done.out / "frcn-0")["metric"] == "voc10"
    assert (done.out / "frcn-0" / "checkpoint.pt").stat().st_mtime_ns == before


def test_failed_run_is_reported_with_its_own_message(done: Comparison) -> None:
    """The folder of a method contains a run with other settings, which is not overwritten."""
    with children_in_this_process():
        message = sentence(ohem(*done.arguments, "--solver.lr", 0.5))
    assert "ended with status 2" in message
    assert "holds a run of recipe" in message
    assert "solver.lr" in message


@pytest.mark.parametrize("file", ["eval.json", "metrics.csv"])
def test_damaged_runs_are_named(file: str, done: Comparison, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.out / "frcn-0", tmp_path / "frcn-0"))
    assert read_result(run, run / "eval.json").map is not None
    (run / file).write_text("")
    with pytest.raises(InputError, match=f"{run / file} is damaged"):
        read_result(run, run / "eval.json")


def test_gains_of_classes_are_sorted(done: Comparison) -> None:
    base, mined = _summaries(done)
    table = gains_table(mined, base)
    names, ours, theirs, gains = (list(column.cells) for column in table.columns)
    assert sorted(map(str, names)) == ["blue", "red"]
    assert gains == [f"{gain:+.1f}" if round(gain, 1) else "0.0" for _, gain in mined.gains(base)]
    for row in zip(names, ours, theirs, strict=True):
        expected = (f"{fmean(run.ap[str(row[0])] or 0 for run in method.runs):.1f}" for method in (mined, base))
        assert row[1:] == tuple(expected)


def summary(name: str, *maps: float, half: float | None = None) -> MethodSummary:
    """Returns runs of 10 steps and 200 seconds; after half of them the mAP is `half`."""
    before = [] if half is None else [CurvePoint(5, 100, half)]
    curves = [[*before, CurvePoint(10, 200, value)] for value in maps]
    runs = [
        RunResult(value, {"king": value}, 0.1, 0.5, {}, [(1, 1.0)], curve)
        for value, curve in zip(maps, curves, strict=True)
    ]
    return MethodSummary(name, f"what {name} does", runs)


def test_headers_say_what_is_printed() -> None:
    table = comparison_table([summary("frcn", 50.0, 51.0), summary("ohem", 60.0, 62.0)])
    headers = [" ".join(str(column.header).split()) for column in table.columns]
    assert headers == [
        "method",
        "mAP, mean ± standard error",
        "gain over frcn",
        "95 % interval",
        "loss over all RoIs",
        "false pos. an image at 80 % recall",
        "s/step",
    ]
    assert list(table.columns[1].cells) == ["50.5 ± 0.5", "61.0 ± 1.0"]
    assert list(table.columns[2].cells) == ["", "+10.5"]


def test_zero_has_no_sign_in_tables_and_sentences() -> None:
    methods = [summary("frcn", 50.0, 50.0), summary("ohem", 49.97, 49.98)]
    cells = [cell for column in comparison_table(methods).columns for cell in column.cells]
    assert "0.0" in cells
    gains = [cell for column in gains_table(methods[1], methods[0]).columns for cell in column.cells]
    text = " ".join(map(str, [*cells, *gains, *findings(methods)]))
    assert "-0.0" not in text
    assert "+0.0" not in text


def test_times_are_those_of_the_mean_of_the_seeds() -> None:
    base, fast = summary("frcn", 40.0, 60.0, half=10.0), summary("ohem", 60.0, 70.0, half=100.0)
    (table,) = time_tables([base, fast, summary("all", 45.0, 46.0, half=20.0), summary("ratio", 50.0, 60.0)])
    assert table.title == "First time at 50.0 mAP, the final mAP of frcn"
    assert [list(column.cells) for column in table.columns] == [
        ["frcn", "ohem", "all", "ratio"],
        ["200.0", "50.0", "not reached", "unknown"],
        ["10", "2", "", ""],
        ["1.00", "0.25", "", ""],
    ]
    assert time_problem([base, fast]) == ""
    time = as_json([base, fast])["methods"][1]["time_to_map"]
    seed = {"steps": 2.5, "seconds": 50.0}
    assert time == {"map": 50.0, "reached": True, **seed, "share_of_base_seconds": 0.25, "seeds": [seed, seed]}


def test_time_to_the_map_of_an_untrained_base_is_not_given() -> None:
    methods = [summary("frcn", 4.0, half=2.0), summary("ohem", 60.0, half=30.0)]
    assert time_tables(methods) == []
    assert "The time to the final mAP of frcn means nothing, since this mAP is below 5: train longer." in findings(
        methods
    )
    assert [method["time_to_map"] for method in as_json(methods)["methods"]] == [None, None]


def test_untrained_methods_are_not_compared() -> None:
    base, other = summary("frcn", 4.0, 4.5), summary("ohem", 0.5, 1.0)
    message = "ohem against frcn: not trained yet: train longer before comparing (mAP 0.8 and 4.2, both below 5)."
    assert findings([base, other])[:3] == ["frcn: what frcn does.", "ohem: what ohem does.", message]
    assert summary("ohem", 60.0, 60.1).verdict(base) == "better"


# Bad input


@pytest.mark.parametrize(
    ("methods", "message"),
    [(["ohem"], "two or more"), (["frcn", "ohme"], "did you mean ohem"), (["ohem"] * 2, "twice")],
)
def test_methods_that_cannot_be_compared_are_reported(methods: list[str], message: str, tmp_path: Path) -> None:
    assert message in sentence(ohem(*compare_arguments(tmp_path, tmp_path / "out", methods=methods)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", 0], "--seeds 0"),
        (["--jobs", 0], "--jobs 0"),
        (["--curve", -1], "--curve -1"),
        (["--recipe", "small-ohme"], "did you mean small-ohem"),
    ],
)
def test_bad_options_are_reported(arguments: list[object], message: str, tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    others = ["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--model.weights", "none"]
    assert message in sentence(ohem("compare", tmp_path / "out", *others, *arguments))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ohem,foo=1", "--foo"),
        ("ohem,sampler.nms-iou=abc", "abc"),
        ("ohem,sampler.nms-iou=7", "0 to 1"),
        ("builtin", "--sampler.name builtin is for"),
    ],
)
def test_method_that_cannot_be_trained_is_reported_before_the_first_training(
    method: str, message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = compare_arguments(make_toy(tmp_path / "toy"), out, methods=["frcn", method])
    assert message in sentence(ohem(*arguments))
    assert not out.exists()


def test_test_set_without_objects_is_reported_before_the_first_training(tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    for path in (data / "Annotations" / "g.xml", data / "Annotations" / "h.xml"):
        path.write_text(re.sub("<object>.*</object>", "", path.read_text(), flags=re.DOTALL))
    arguments = compare_arguments(data, tmp_path / "out")
    assert "has no object: name another split" in sentence(ohem(*arguments))


def test_missing_data_are_reported(tmp_path: Path) -> None:
    assert "--data.train" in sentence(ohem("compare", tmp_path / "out"))


def test_second_comparison_in_a_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with another_process(out / ".lock"):
        message = sentence(ohem(*compare_arguments(make_toy(tmp_path / "toy"), out)))
    assert f"the comparison {out} is in use" in message
    assert [path.name for path in out.iterdir()] == [".lock"]
