"""`ohem eval --curve` evaluates snapshots: once, and again only if weights, data or the metric have changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ohem.evaluation import map_curve
from ohem.evaluation.map_curve import MapCurve, MapPoint, read_curve, spread, write_curve
from ohem.training import snapshots
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an evaluated run of 12 steps with a snapshot after steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("original")
    make_toy(folder / "toy")
    options = ["--run.snapshot-every", 4, "--test.score", 0.01]
    assert ohem("train", folder / "run", *training(folder / "toy", steps=12), *options).code == 0
    assert ohem("eval", folder / "run").code == 0
    assert ohem("eval", folder / "run", "--curve", 8).code == 0
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """Returns a copy of the run, with its curve."""
    return Path(shutil.copytree(original, tmp_path / "ohem"))


def points(run: Path) -> tuple[MapPoint, ...]:
    curve = read_curve(run / map_curve.NAME)
    assert curve is not None
    return curve.points


def count_evaluations(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Returns a list that gets an item for each set of weights that is evaluated."""
    evaluated: list[object] = []
    detect = map_curve.detect_shared
    monkeypatch.setattr(map_curve, "detect_shared", lambda *given: evaluated.append(given) or detect(*given))
    return evaluated


def test_last_point_is_the_final_evaluation(original: Path) -> None:
    report = json.loads((original / "eval.json").read_text())
    assert [point.step for point in points(original)] == [4, 8, 12]
    assert points(original)[-1] == MapPoint(12, report["map"], report["weights"])


def test_points_are_those_of_the_snapshots(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = points(run)
    for name in (map_curve.NAME, "eval.json"):
        (run / name).unlink()
    evaluated = count_evaluations(monkeypatch)
    printed = ohem("eval", run, "--curve", 8)
    assert points(run) == before
    assert len(evaluated) == 3
    assert all(f"{point.map:.1f}" in printed.out for point in before)
    assert not (run / "eval.json").exists()


def test_nothing_is_evaluated_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = points(run)
    evaluated = count_evaluations(monkeypatch)
    assert ohem("eval", run, "--curve", 8).code == 0
    assert ohem("eval", run, "--curve", 2).code == 0
    assert not evaluated
    assert points(run) == (before[0], before[2])  # those nearest to steps 6 and 12; of two, the earlier


def test_killed_evaluation_repeats_only_what_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = read_curve(run / map_curve.NAME)
    assert curve is not None
    write_curve(run / map_curve.NAME, MapCurve(curve.metric, curve.test, curve.data, curve.points[1:]))
    evaluated = count_evaluations(monkeypatch)
    assert ohem("eval", run, "--curve", 8).code == 0
    assert len(evaluated) == 1
    assert points(run) == curve.points


def test_change_of_weights_is_noticed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = points(run)
    path = snapshots.list_snapshots(run)[4]
    changed = snapshots.load(path)
    changed["scores.bias"] += 1
    path.unlink()
    snapshots.save_snapshot(run, 4, changed)
    evaluated = count_evaluations(monkeypatch)
    assert ohem("eval", run, "--curve", 8).code == 0
    assert len(evaluated) == 1
    assert points(run)[0].weights != before[0].weights
    assert points(run)[1:] == before[1:]


@pytest.mark.parametrize("options", [["--metric", "voc10"], ["--test.nms-iou", 0.5]])
def test_other_metric_or_test_options_replace_the_curve(
    options: list[object], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = count_evaluations(monkeypatch)
    assert ohem("eval", run, "--curve", 8, *options).code == 0
    assert len(evaluated) == 3


def test_run_without_snapshots_has_its_final_evaluation(run: Path) -> None:
    shutil.rmtree(run / "snapshots")
    assert ohem("eval", run, "--curve", 8).code == 0
    assert [point.step for point in points(run)] == [12]


@pytest.mark.parametrize(
    ("steps", "count", "chosen"),
    [
        ([7], 3, [7]),
        ([1, 2, 3], 3, [1, 2, 3]),
        (range(1, 101), 4, [25, 50, 75, 100]),
        ([10, 20, 30], 1, [30]),
        ([1, 2, 100], 2, [2, 100]),
        ([96, 97, 98, 99, 100], 4, [96, 100]),
    ],
)
def test_steps_are_spread_evenly(steps: list[int], count: int, chosen: list[int]) -> None:
    assert spread(steps, count) == chosen


# Bad input


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": "0"}'])
def test_damaged_curve_is_reported(text: str, run: Path) -> None:
    path = run / map_curve.NAME
    path.write_text(text)
    message = sentence(ohem("eval", run, "--curve", 8))
    assert f"{path} is damaged" in message
    assert "remove it, and the snapshots are evaluated again" in message


def test_changed_number_is_noticed(run: Path) -> None:
    path = run / map_curve.NAME
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    assert "its content does not match its digest" in sentence(ohem("eval", run, "--curve", 8))


def test_snapshot_that_cannot_be_used_is_reported(run: Path) -> None:
    path = snapshots.list_snapshots(run)[4]
    path.unlink()
    snapshots.save_snapshot(run, 4, {"scores.bias": torch.zeros(7)})
    assert f"{path} is of another detector: remove it" in sentence(ohem("eval", run, "--curve", 8))
    path.write_bytes(path.read_bytes()[:-4])
    assert f"{path} cannot be read" in sentence(ohem("eval", run, "--curve", 8))


def test_options_that_do_not_fit_are_reported(run: Path) -> None:
    assert "--curve -1 evaluates nothing" in sentence(ohem("eval", run, "--curve", -1))
    for option in (["--loss"], ["--out", run / "other.json"], ["--submit", run / "submission"]):
        assert "leave out --loss, --submit and --out" in sentence(ohem("eval", run, "--curve", 8, *option))
