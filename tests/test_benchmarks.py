"""The other ways to mine choose and learn as their originals do; the benchmarks run, and the goals are read."""

import inspect
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmarks import anchors, picture, segmentation, select, torchvision_step, voc_ap
from benchmarks.common import run_main
from benchmarks.goals import GOALS, WITHOUT_GOALS, read_results
from benchmarks.ranking import shortlist
from benchmarks.rivals import ClassLossSampler, Gathered, PerImage, Plain, WholeNMS
from benchmarks.scale import arms, evaluation, opening, proposals, recall, steps
from benchmarks.scale.__main__ import ROWS, table_of
from benchmarks.step import OURS
from torch import Tensor

from ohem.bench.methods import BENCH_METHODS
from ohem.cli.training import demo as demo_command
from ohem.data.sources import open_dataset
from ohem.data.synthetic import CLASSES, make_scenes
from ohem.demo.text import TITLES
from ohem.detection.fast_rcnn import FastRCNN
from ohem.inputs.datasets import open_data
from ohem.kernels.fast_linear import fast_linear
from ohem.proposals.selective_search import FAST
from ohem.proposals.store import Proposals
from ohem.recorder import Recorder
from ohem.samplers import OHEMSampler
from tests.detection.toy_detector import assert_close, detector, losses_and_gradients, mini_batch
from tests.helpers.command_line import ohem
from tests.helpers.tiny_rcnn import faster_rcnn
from tests.helpers.toy_data import make_toy, training


def as_rival(kind: type[FastRCNN], recorder: Recorder) -> FastRCNN:
    model = detector(recorder, "loss_layer" if kind is Gathered else "read_only").double()
    model.__class__ = kind
    return model


@pytest.mark.parametrize("kind", [Plain, Gathered])
def test_plain_methods_choose_and_learn_the_same(kind: type[FastRCNN]) -> None:
    ours, theirs = Recorder(OHEMSampler(8)), Recorder(WholeNMS(8))
    expected = losses_and_gradients(detector(ours).double(), mini_batch())
    results = losses_and_gradients(as_rival(kind, theirs), mini_batch())
    assert ours.chosen is not None
    assert theirs.chosen is not None
    assert sorted(ours.chosen.tolist()) == sorted(theirs.chosen.tolist())
    for some, others in zip(results, expected, strict=True):
        assert_close(some, others)


@pytest.mark.parametrize("kind", [Plain, PerImage, Gathered])
def test_plain_methods_use_the_layers_of_pytorch(kind: type[FastRCNN], monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, within the fast layers of our loop, and at test time."""

    def to_mkldnn(x: Tensor) -> Tensor:
        raise AssertionError("this layer is ours")

    monkeypatch.setattr(Tensor, "to_mkldnn", to_mkldnn)
    model = as_rival(kind, Recorder(WholeNMS(8))).float()
    images, proposals, targets = mini_batch()
    with fast_linear(model):
        model(images, proposals, targets)
    model.eval().detect(images[:1], [1.0], proposals[0], (96, 128))


def test_rule_of_mmdetection_equals_our_preset() -> None:
    ours, theirs = Recorder(OHEMSampler.mmdetection(8)), Recorder(ClassLossSampler(8))
    expected, _ = losses_and_gradients(detector(ours).double(), mini_batch())
    losses, _ = losses_and_gradients(as_rival(PerImage, theirs), mini_batch())
    assert ours.chosen is not None
    assert theirs.chosen is not None
    assert sorted(ours.chosen.tolist()) == sorted(theirs.chosen.tolist())
    assert_close(losses, expected)


def _write_reports(folder: Path, exact: float) -> None:
    ratios = {"ohem": exact, "ohem-rescore-top": 1.1, "ohem-loss-layer": 2.6, "mmdetection": 1.9}
    ratios |= {"ohem-shortlist": 1.02, "ohem-shortlist-rescore-top": 1.01}
    step = {name: {"seconds_ratio": {"median": ratio}, "peak_ratio": 1.2} for name, ratio in ratios.items()}

    def seconds(**medians: float) -> dict[str, dict[str, float]]:
        return {name.replace("_", " "): {"median": median} for name, median in medians.items()}

    reports: dict[str, Any] = {
        "step": {"vgg16, 500 RoIs": {}, "vgg16, 2000 RoIs": {"short": 600, "methods": step}},
        "pool": {"seconds": {"torchvision, every RoI": {"median": 0.5}, "ours, distinct": {"median": 0.1}}},
        "select": {
            "4000 RoIs, 2 groups": seconds(torchvision=0.03, ours=0.01),
            "1000000 RoIs, 2 groups": seconds(ours=0.25),
        },
        "detect": {"plain": {**seconds(every_RoI=2.6, distinct=2.0), "limit": 1.4}},
        "picture": {"search_share": 0.75},
        "propose": {"images_per_second": {"1": 1.0, "4": 3.5}},
        "torchvision_step": {"seconds": {**seconds(torchvision=2.0), "with_ohem": {"median": 1.8}}},
        "segmentation": {"losses": {"cross entropy": {"sort of all": {"median": 0.3}, "OHEMLoss": {"median": 0.4}}}},
        "voc_ap": {"seconds": {"VOC": {"median": 0.5}, "VOC, loops": {"median": 6.0}}},
    }
    assert reports.keys() == GOALS.keys()
    for name, content in reports.items():
        (folder / f"{name}.json").write_text(json.dumps({"benchmark_seconds": 30.0, **content}))


@pytest.mark.parametrize(("exact", "met"), [(1.25, True), (1.4, False)])
def test_goals_calculated_by_hand(tmp_path: Path, exact: float, met: bool) -> None:
    _write_reports(tmp_path, exact)
    results = read_results(tmp_path)
    rows = results.goals
    step = [exact, 1.1, 1.02, 1.01, 2.6 / exact, 2.6 / 1.1, 1.9 / exact, 1.2]
    assert [row.measured for row in rows] == pytest.approx([*step, 5.0, 3.0, 0.25, 1.3, 0.75, 3.5 / 4, 0.9, 0.75, 12.0])
    assert [row.limit for row in rows] == [None] * 11 + [1.4] + [None] * 5
    assert [row.met for row in rows[:8]] == [met, True, True, True, met, False, met, False]
    assert [row.met for row in rows[8:]] == [True, False, True, True, None, True, True, False, True]
    assert (results.notes, results.missing) == ([], [])
    assert results.minutes == dict.fromkeys(GOALS, 0.5)


def test_missing_measurements_are_reported(tmp_path: Path) -> None:
    """A sentence for each; the goals of the other files are there."""
    assert len(read_results(tmp_path).missing) == len(GOALS)
    _write_reports(tmp_path, 1.0)
    (tmp_path / "pool.json").unlink()
    (tmp_path / "step.json").write_text('{"squeezenet1_0, 500 RoIs": {}}')
    (tmp_path / "select.json").write_text('{"4000 RoIs, 2 groups": {}}')
    results = read_results(tmp_path)
    step, pool, select = results.missing
    assert "step.json was not measured with '--backbones vgg16'" in step
    assert "pool.json does not exist" in pool
    assert "select.json was not measured with '1000000 RoIs, 2 groups'" in select
    assert len(results.goals) == 6


def test_smaller_steps_are_noted(tmp_path: Path) -> None:
    _write_reports(tmp_path, 1.0)
    report = json.loads((tmp_path / "step.json").read_text())
    report["vgg16, 2000 RoIs"]["short"] = 400
    (tmp_path / "step.json").write_text(json.dumps(report))
    (note,) = read_results(tmp_path).notes
    assert note.startswith("The steps were measured with vgg16, 2000 RoIs, short side 400.")


def test_every_method_of_ohem_bench_is_in_the_benchmark_of_a_step() -> None:
    assert {*OURS, "frcn-accumulate", "ohem-accumulate"} == set(BENCH_METHODS)


def test_make_bench_runs_every_benchmark() -> None:
    """Each benchmark is a line of the Makefile, and each JSON file that has goals is written."""
    root = Path(__file__).parents[1]
    text = (root / "Makefile").read_text()
    runs = dict(
        re.findall(r"^\t\$\(BENCH\)\.(?:ranking\.)?(\w+) .*--out \$\(OUT\)/(\w+)\.json$", text, flags=re.MULTILINE)
    )
    assert all(name == file for name, file in runs.items())
    modules = {path.stem for path in (root / "benchmarks").glob("*.py")}
    assert set(runs) == modules - {"__init__", "common", "goals", "rivals"} | {"agree"}
    assert set(runs) == {*GOALS, *WITHOUT_GOALS}


def run_benchmark(module: ModuleType, arguments: list[object], out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the `main` of a benchmark with the arguments; returns its report."""
    monkeypatch.setattr("sys.argv", ["benchmark", *map(str, arguments), "--out", str(out)])
    module.main()
    report = json.loads(out.read_text())
    assert report["benchmark_seconds"] > 0
    return report


def test_losses_of_segmentation_equal_the_usual_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark itself compares the values."""
    arguments = ["--classes", 5, "--height", 16, "--width", 32, "--rounds", 1]
    report = run_benchmark(segmentation, arguments, tmp_path / "x.json", monkeypatch)
    assert set(report["losses"]) == {"cross entropy", "BCE with a mask"}
    assert all(set(times) == {"sort of all", "OHEMLoss"} for times in report["losses"].values())


def test_average_precision_equals_that_of_the_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark itself compares the values."""
    arguments = ["--images", 40, "--detections", 20, "--rounds", 1]
    report = run_benchmark(voc_ap, arguments, tmp_path / "x.json", monkeypatch)
    assert set(report["seconds"]) == {"VOC", "COCO", "VOC, loops"}


def test_steps_of_torchvision_are_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", f"{data}:train", "--short", 64, "--long", 96, "--images", 1, "--rounds", 1]
    report = run_benchmark(torchvision_step, arguments, tmp_path / "x.json", monkeypatch)
    assert set(report["seconds"]) == {"torchvision", "with_ohem"}


def test_mining_of_anchors_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "fasterrcnn_resnet50_fpn", lambda **_: faster_rcnn())
    monkeypatch.setattr(anchors, "STRIDES", (4, 8))
    arguments = ["--short", 64, "--long", 96, "--rounds", 1]
    report = run_benchmark(anchors, arguments, tmp_path / "x.json", monkeypatch)
    assert report["anchors"] == 16 * 24 + 8 * 12
    assert set(report["seconds"]) == {"torchvision", "nms_iou=None", "nms_iou=0.7", "nms_iou=0.5", "nms_iou=0.3"}
    assert 0 < report["foreground"]["nms_iou=0.3"] < 1


def test_selection_of_many_boxes_has_no_measurement_of_torchvision(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", f"{data}:train", "--sizes", 200, 300, "--torchvision-most", 200, "--rounds", 1]
    report = run_benchmark(select, arguments, tmp_path / "x.json", monkeypatch)
    assert set(report["200 RoIs, 1 groups"]) == {"ours", "torchvision"}
    assert set(report["300 RoIs, 1 groups"]) == {"ours"}


def test_a_shortlist_of_all_rois_agrees(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", f"{data}:train", "--sizes", 8, 5000, "--steps", 12]
    report = run_benchmark(shortlist, arguments, tmp_path / "x.json", monkeypatch)
    assert report["sizes"] == [8, 5000]
    last = list(report["steps"].values())[-1]
    few, every = last["seen"]
    assert few < every == 1
    assert 0 < last["same"][0] <= last["same"][1] == 1


def test_parts_of_a_picture_are_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=1)).code == 0
    arguments = ["--data", f"{data}:train", "--run", run, "--short", 64, "--long", 80, "--images", 2]
    report = run_benchmark(picture, arguments, tmp_path / "x.json", monkeypatch)
    assert set(report["seconds"]) == {"reading", "selective search", "network", "drawing and writing"}
    assert report["search_share"] == pytest.approx(
        report["seconds"]["selective search"] / sum(report["seconds"].values())
    )


def test_make_bench_uses_the_files_of_the_demo(tmp_path: Path) -> None:
    """The default of DATA is a split of the data of the demo, that of RUN one of its runs."""
    text = (Path(__file__).parents[1] / "Makefile").read_text()
    default = dict(re.findall(r"^(\w+) \?= (.*)$", text, flags=re.MULTILINE))
    folder, split = default["DATA"].rsplit(":", 1)
    demo = inspect.signature(demo_command).parameters["folder"].default
    assert Path(folder) == demo / "data"
    assert Path(default["RUN"]).parent == demo
    assert Path(default["RUN"]).name in TITLES
    make_scenes(tmp_path / "data", train=1, test=1)
    assert len(open_data([f"{tmp_path / 'data'}:{split}"], CLASSES, "--data")) == 1


def test_data_of_the_opening_benchmark_are_clean(tmp_path: Path) -> None:
    """Warnings are errors; every image has its header read."""
    path = opening.make_data(tmp_path / "made", 30)
    data = open_dataset([f"{path}:{tmp_path / 'made' / 'images'}"])
    assert (len(data), data.objects().total(), data.size(7)) == (30, 219, opening.SIZE[::-1])


def test_recall_counts_objects_that_a_proposal_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset([f"{make_toy(tmp_path / 'toy')}:test"])
    objects_of = {str(data.path(i)): data.target(i)["boxes"].numpy() for i in range(len(data))}
    wanted = [len(objects_of[str(data.path(i))]) for i in range(len(data))]
    assert wanted[0] > 0
    corners = np.tile(np.array([[0, 0, 1, 1]], np.float32), (recall.TOP, 1))
    boxes = {path: np.concatenate([corners, objects]) for path, objects in objects_of.items()}
    monkeypatch.setattr(recall, "propose", lambda name, path, method: (name, boxes[str(path)]))
    counts = recall._measure(data, [0], [FAST])
    assert (counts["objects"], counts["found"], counts["found_first"]) == (wanted[0], wanted[0], 0)
    assert counts["found_at_0.7"] == wanted[0]


def test_proposals_of_many_images_are_those_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "READ", 2)
    proposals._link(tmp_path, 9)
    assert set(proposals._measure(tmp_path, 8, 3)) == {"", "_mb"}
    assert set(proposals._measure(tmp_path, 9, 3)) == {"", "_mb", "_read_ms", "_digest"}
    (path,) = (tmp_path / "Proposals").iterdir()
    assert [len(boxes) for boxes in Proposals.load(path).values()] == [3] * 9


def test_scores_of_many_images_are_those_of_pycocotools(tmp_path: Path) -> None:
    evaluation.make_detections(tmp_path, 12, 6)
    results = {name: method(tmp_path) for name, method in evaluation.METHODS.items()}
    assert results["COCO"]["map"] == pytest.approx(results["pycocotools"]["map"], abs=1e-9)
    assert 0 < results["COCO"]["map"] < results["VOC"]["map"]


def test_steps_of_large_data_read_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"READ": 2, "STEPS": 1, "SHORT": 48, "LONG": 64, "PROPOSALS": 20}.items():
        monkeypatch.setattr(steps, name, value)
    path = opening.make_data(tmp_path / "made", 4)
    assert steps._of_torchvision(path)["image_ms"] > 0
    assert all(value >= 0 for value in steps._of_ohem(path).values())


def test_a_measurement_that_needs_too_much_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, reason in ((-signal.SIGXCPU, "takes more than 1 s"), (arms.NO_MEMORY, "needs more than 8 GB")):
        monkeypatch.setattr(subprocess, "run", lambda *_, status=status, **__: subprocess.CompletedProcess([], status))
        assert arms.run_arm("opening", [], tmp_path, arms.Limits(seconds=1)) == {"stopped": reason}

    def fill() -> arms.Result:
        raise MemoryError

    with pytest.raises(SystemExit) as ended:
        arms.print_result(fill)
    assert ended.value.code == arms.NO_MEMORY
    results = {"first": {"seconds": 1.5, "megabytes": 1573.4}, "again": {"stopped": "too long"}}
    report = {1000: {"opening": results}}
    assert [list(column.cells) for column in table_of(report).columns] == [
        list(ROWS)[:2],
        ["1.5 s, 1,570 MB", "too long"],
    ]


def test_the_status_of_a_failed_command_is_kept() -> None:
    def main() -> None:
        subprocess.run([sys.executable, "-S", "-c", "raise SystemExit(2)"], check=True)

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2
