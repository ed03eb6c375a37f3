"""The other ways to mine in the benchmarks choose and learn as their originals do."""

import inspect
import json
import re
from pathlib import Path

import pytest
from benchmarks.goals import goals
from benchmarks.rivals import ClassLossSampler, Gathered, PerImage, Plain, WholeNMS
from torch import Tensor

from ohem.cli import demo as demo_command
from ohem.data.synthetic import CLASSES, make_scenes
from ohem.demo import TITLES
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.inputs.datasets import open_data
from ohem.kernels.fast_linear import fast_linear
from ohem.recorder import Recorder
from ohem.samplers import OHEMSampler
from tests.detection.toy_detector import assert_close, detector, losses_and_gradients, mini_batch


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
    step = {name: {"seconds_ratio": {"median": ratio}, "peak_ratio": 1.2} for name, ratio in ratios.items()}

    def seconds(**medians: float) -> dict[str, dict[str, float]]:
        return {name.replace("_", " "): {"median": median} for name, median in medians.items()}

    reports = {
        "step": {"vgg16, 2000 RoIs": {"methods": step}},
        "pool": {"seconds": {"torchvision, every RoI": {"median": 0.5}, "ours, distinct": {"median": 0.1}}},
        "select": {"4000 RoIs, 2 groups": seconds(torchvision=0.03, ours=0.01)},
        "detect": {"plain": {**seconds(every_RoI=2.6, distinct=2.0), "limit": 1.4}},
        "propose": {"images_per_second": {"1": 1.0, "4": 3.5}},
    }
    for name, content in reports.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("exact", "met"), [(1.25, True), (1.4, False)])
def test_goals_calculated_by_hand(tmp_path: Path, exact: float, met: bool) -> None:
    _write_reports(tmp_path, exact)
    rows = goals(tmp_path)
    measured = [exact, 1.1, 2.6 / exact, 2.6 / 1.1, 1.9 / exact, 1.2, 5.0, 3.0, 1.3, 3.5 / 4]
    assert [row.measured for row in rows] == pytest.approx(measured)
    assert [row.limit for row in rows] == [None] * 8 + [1.4, None]
    assert [row.met for row in rows] == [met, True, met, False, met, False, True, False, True, True]


def test_missing_measurements_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"step\.json does not exist"):
        goals(tmp_path)
    _write_reports(tmp_path, 1.0)
    (tmp_path / "step.json").write_text('{"vgg16, 500 RoIs": {}}')
    with pytest.raises(InputError, match="were not run with 'vgg16, 2000 RoIs'"):
        goals(tmp_path)


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
