"""`ohem compare` on toy data, as a new user would run it: its figures are those of its runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest

from ohem.errors import InputError
from ohem.experiments.compare import gains_table
from ohem.experiments.outcomes import Summary, read_outcome
from ohem.experiments.runner import Job
from tests.command_line import Result, ohem, sentence
from tests.fuzz.commands import children_in_this_process
from tests.test_locks import another_process
from tests.toy import make_toy


class Comparison(NamedTuple):
    words: list[object]
    out: Path
    result: Result


ARMS = ["frcn", "ohem,sampler.nms-iou=0.5"]


def _words(data: Path, out: Path, steps: int = 30, arms: Sequence[str] = ARMS) -> list[object]:
    return [
        *["compare", out, "--recipe", "demo-frcn", "--arms", *arms, "--seeds", 2, "--jobs", 2],
        *["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--data.short", 64, "--data.long", 80],
        *["--solver.steps", steps, "--run.accelerator", "cpu", "--proposals.jobs", 1],
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("compare")
    words = _words(make_toy(folder / "toy"), folder / "out")
    with children_in_this_process():
        return Comparison(words, folder / "out", ohem(*words))


def _report(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return found


def test_figures_are_those_of_the_runs(done: Comparison) -> None:
    assert done.result.code == 0, done.result
    told = json.loads((done.out / "compare.json").read_text())
    arms = {arm["name"]: arm for arm in told["arms"]}
    reports = {name: [_report(done.out / f"{name}-{seed}") for seed in (0, 1)] for name in arms}
    assert list(arms) == ["frcn", "ohem-sampler.nms-iou=0.5"]
    for name, arm in arms.items():
        assert arm["maps"] == [report["map"] for report in reports[name]]
        assert arm["map"] == pytest.approx(fmean(arm["maps"]))
        assert arm["loss_all_rois"] == [report["loss_all_rois"] for report in reports[name]]
        assert arm["seconds_per_step"] > 0
    base, mined = arms["frcn"], arms["ohem-sampler.nms-iou=0.5"]
    assert mined["difference"]["mean"] == pytest.approx(mined["map"] - base["map"])
    for name, gain in mined["difference"]["per_class"].items():
        both = [[report["ap"][name] for report in reports[arm]] for arm in arms]
        assert gain == pytest.approx(fmean(both[1]) - fmean(both[0]))
    gains = list(mined["difference"]["per_class"].values())
    assert gains == sorted(gains, reverse=True)


def test_arms_differ_in_their_sampler_alone(done: Comparison) -> None:
    first, second = ((done.out / f"{arm}-1" / "recipe.yaml").read_text().splitlines() for arm in _arms(done))
    lines = [(a.strip(), b.strip()) for a, b in zip(first, second, strict=True) if a != b]
    changed = [pair for pair in lines if not pair[0].startswith("checksum")]
    assert changed == [("name: random", "name: ohem"), ("nms_iou: 0.7", "nms_iou: 0.5")]


def _arms(done: Comparison) -> list[str]:
    return [arm["name"] for arm in json.loads((done.out / "compare.json").read_text())["arms"]]


def test_it_says_whether_the_difference_is_noise(done: Comparison) -> None:
    verdict = json.loads((done.out / "compare.json").read_text())["arms"][1]["difference"]["verdict"]
    assert verdict in ("better", "worse", "within noise")
    assert f"{verdict}. Most: " in " ".join(done.result.out.split())
    page = (done.out / "compare.html").read_text()
    assert f"<strong>{verdict}</strong>" in page
    assert page.count("<svg") == 2
    assert "ohem train" in page


def test_the_page_tells_how_many_of_how_many_were_chosen(done: Comparison) -> None:
    page = (done.out / "compare.html").read_text()
    for runs in (arm["mined"] for arm in json.loads((done.out / "compare.json").read_text())["arms"]):
        chosen, rois = (fmean(run[name] for run in runs) for name in ("chosen", "rois"))
        assert f"{chosen:.0f} of {rois:.0f}</td>" in page
    loss, loss_all = (fmean(run[name] for run in runs) for name in ("loss_chosen", "loss_all"))
    assert page.count(" / ") == 2  # the head of the column, and the arm that ranks
    assert f"{loss:.3f} / {loss_all:.3f}</td>" in page


def test_the_same_line_does_nothing_more(done: Comparison) -> None:
    files = [path for path in done.out.rglob("*") if path.suffix in (".pt", ".csv") or path.name == "eval.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = ohem(*done.words)
    assert again.code == 0
    assert "4 of 4 runs are done already" in again.out
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_another_metric_evaluates_anew_and_trains_nothing(done: Comparison, capfd: pytest.CaptureFixture[str]) -> None:
    before = (done.out / "frcn-0" / "checkpoint.pt").stat().st_mtime_ns
    with children_in_this_process():
        assert ohem(*done.words, "--metric", "voc10").code == 0
    assert _report(done.out / "frcn-0")["metric"] == "voc10"
    assert (done.out / "frcn-0" / "checkpoint.pt").stat().st_mtime_ns == before


def test_a_failing_run_is_told_with_its_own_sentence(done: Comparison) -> None:
    """The folder of an arm holds a run of other settings: nothing of it is lost."""
    with children_in_this_process():
        result = ohem(*done.words, "--solver.lr", 0.5)
    told = sentence(result)
    assert "ended with status 2" in told
    assert "holds a run of recipe" in told
    assert "solver.lr" in told


@pytest.mark.parametrize(
    ("arms", "message"), [(["ohem"], "two or more"), (["frcn", "ohme"], "did you mean ohem"), (["ohem"] * 2, "twice")]
)
def test_arms_that_cannot_be_compared(arms: list[str], message: str, tmp_path: Path) -> None:
    assert message in sentence(ohem(*_words(tmp_path, tmp_path / "out", arms=arms)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", 0], "--seeds 0"),
        (["--jobs", 0], "--jobs 0"),
        (["--recipe", "small-ohme"], "did you mean small-ohem"),
    ],
)
def test_bad_input(words: list[object], message: str, tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    left = ["--data.train", f"{data}:train", "--data.test", f"{data}:test", "--model.weights", "none"]
    assert message in sentence(ohem("compare", tmp_path / "out", *left, *words))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("ohem,foo=1", "--foo"),
        ("ohem,sampler.nms-iou=abc", "abc"),
        ("ohem,sampler.nms-iou=7", "0 to 1"),
        ("own", "--sampler.name own is what"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_told_before_the_others_are(arm: str, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert message in sentence(ohem(*_words(make_toy(tmp_path / "toy"), out, arms=["frcn", arm])))
    assert not out.exists()


def test_a_test_set_without_objects_is_told_before_hours_of_training(tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    for path in (data / "Annotations" / "g.xml", data / "Annotations" / "h.xml"):
        path.write_text(re.sub("<object>.*</object>", "", path.read_text(), flags=re.DOTALL))
    words = _words(data, tmp_path / "out")
    assert "has no object: name another split" in sentence(ohem(*words))


@pytest.mark.parametrize("file", ["eval.json", "metrics.csv"])
def test_damaged_runs_are_named(file: str, done: Comparison, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done.out / "frcn-0", tmp_path / "frcn-0"))
    assert read_outcome(run, run / "eval.json").map is not None
    (run / file).write_text("")
    with pytest.raises(InputError, match=f"{run / file} is damaged"):
        read_outcome(run, run / "eval.json")


def test_the_gains_of_each_class_highest_first(done: Comparison) -> None:
    base, mined = (
        Summary(arm, "", [read_outcome(run, run / "eval.json") for run in (done.out / f"{arm}-{i}" for i in (0, 1))])
        for arm in ("frcn", "ohem-sampler.nms-iou=0.5")
    )
    table = gains_table(mined, base)
    names, ours, theirs, gains = (list(column.cells) for column in table.columns)
    assert sorted(map(str, names)) == ["blue", "red"]
    assert gains == [f"{gain:+.1f}" for _, gain in mined.gains(base)]
    for row in zip(names, ours, theirs, strict=True):
        assert row[1:] == tuple(f"{fmean(run.ap[str(row[0])] or 0 for run in arm.runs):.1f}" for arm in (mined, base))


def test_data_are_needed(tmp_path: Path) -> None:
    assert "--data.train" in sentence(ohem("compare", tmp_path / "out"))


def test_a_second_comparison_in_a_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with another_process(out / ".lock"):
        assert f"the comparison {out} is in use" in sentence(ohem(*_words(make_toy(tmp_path / "toy"), out)))
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_what_was_done_is_done_again_where_it_was_damaged_or_the_data_changed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    files = [run / "eval.json", run / "metrics.csv", run / "eval.line"]
    for path in files[:2]:
        path.write_text(f"{path.name} 93.5\n")
    job = Job(run, ["train", "run"], {files[0]: ["eval", "run"]}, "of these data")
    assert job.left() == [["train", "run"], ["eval", "run"]]
    job.mark(["eval", "run"])
    assert job.left() == []
    assert replace(job, made_of="of other data").left()
    for path in files:
        before = path.read_bytes()
        for damaged in (before.replace(b"3", b"2"), b"\xff", b""):
            path.write_bytes(damaged)
            assert job.left()
        path.unlink()
        assert job.left()
        path.write_bytes(before)
        assert job.left() == []


def test_a_signal_leaves_checkpoints_and_the_line_goes_on(tmp_path: Path) -> None:
    words = _words(make_toy(tmp_path / "toy"), tmp_path / "out", steps=100_000)
    command = [sys.executable, "-m", "ohem.cli", *map(str, words), "--run.log-every", "1"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    rows = [tmp_path / "out" / f"{arm}-0" / "metrics.csv" for arm in ("frcn", "ohem-sampler.nms-iou=0.5")]
    while not all(path.exists() and path.read_text().count("\n") > 2 for path in rows):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"the same line goes on from there" in out
    assert all(path.with_name("checkpoint.pt").exists() for path in rows)
