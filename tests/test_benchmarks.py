"""What the benchmarks time beside ours does what it is named after: the same choice or gradient, by another way."""

import inspect
import json
import re
from pathlib import Path

import pytest
from benchmarks.goals import goals
from benchmarks.rivals import ClassLossApart, Gathered, PerImage, Plain, WholeNMS
from torch import Tensor

from ohem.cli import demo as demo_command
from ohem.data.scenes import CLASSES, make_scenes
from ohem.demo import ARMS
from ohem.detection.fast_rcnn import FastRCNN
from ohem.errors import InputError
from ohem.layers import fast_linear
from ohem.recording import Recorder
from ohem.samplers import OHEMSampler
from ohem.training.build import build_data
from tests.detection.test_fast_rcnn import assert_close, detector, losses_and_gradients, mini_batch


def as_rival(kind: type[FastRCNN], recorder: Recorder) -> FastRCNN:
    model = detector(recorder, "loss_layer" if kind is Gathered else "read_only").double()
    model.__class__ = kind
    return model


@pytest.mark.parametrize("kind", [Plain, Gathered])
def test_the_plain_ways_choose_and_learn_the_same(kind: type[FastRCNN]) -> None:
    ours, theirs = Recorder(OHEMSampler(8)), Recorder(WholeNMS(8))
    expected = losses_and_gradients(detector(ours).double(), mini_batch())
    found = losses_and_gradients(as_rival(kind, theirs), mini_batch())
    assert ours.chosen is not None
    assert theirs.chosen is not None
    assert sorted(ours.chosen.tolist()) == sorted(theirs.chosen.tolist())
    for some, others in zip(found, expected, strict=True):
        assert_close(some, others)


@pytest.mark.parametrize("kind", [Plain, PerImage, Gathered])
def test_the_plain_ways_are_timed_with_pytorchs_own_layers(
    kind: type[FastRCNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training within our loop's fast layers, and at test time."""

    def to_mkldnn(x: Tensor) -> Tensor:
        raise AssertionError("oneDNN is ours")

    monkeypatch.setattr(Tensor, "to_mkldnn", to_mkldnn)
    model = as_rival(kind, Recorder(WholeNMS(8))).float()
    images, proposals, targets = mini_batch()
    with fast_linear(model):
        model(images, proposals, targets)
    model.eval().detect(images[:1], [1.0], proposals[0], (96, 128))


def test_mmdetections_rule_is_our_preset() -> None:
    ours, theirs = Recorder(OHEMSampler.mmdetection(8)), Recorder(ClassLossApart(8))
    expected, _ = losses_and_gradients(detector(ours).double(), mini_batch())
    found, _ = losses_and_gradients(as_rival(PerImage, theirs), mini_batch())
    assert ours.chosen is not None
    assert theirs.chosen is not None
    assert sorted(ours.chosen.tolist()) == sorted(theirs.chosen.tolist())
    assert_close(found, expected)


def _write_figures(folder: Path, exact: float) -> None:
    arms = {"ohem": exact, "ohem-rescored": 1.1, "ohem-loss-layer": 2.6, "mmdetection": 1.9}
    step = {arm: {"seconds_ratio": {"median": ratio}, "peak_ratio": 1.2} for arm, ratio in arms.items()}

    def seconds(**ways: float) -> dict[str, dict[str, float]]:
        return {name.replace("_", " "): {"median": taken} for name, taken in ways.items()}

    figures = {
        "step": {"vgg16, 2000 RoIs": {"arms": step}},
        "pool": {"seconds": {"torchvision, every RoI": {"median": 0.5}, "ours, distinct": {"median": 0.1}}},
        "select": {"4000 RoIs, 2 groups": seconds(torchvision=0.03, ours=0.01)},
        "detect": {"plain": {**seconds(every_RoI=2.6, distinct=2.0), "limit": 1.4}},
        "propose": {"images_per_second": {"1": 1.0, "4": 3.5}},
    }
    for name, content in figures.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("exact", "met"), [(1.25, True), (1.4, False)])
def test_goals_by_hand(tmp_path: Path, exact: float, met: bool) -> None:
    _write_figures(tmp_path, exact)
    found = goals(tmp_path)
    measured = [exact, 1.1, 2.6 / exact, 2.6 / 1.1, 1.9 / exact, 1.2, 5.0, 3.0, 1.3, 3.5 / 4]
    assert [row.measured for row in found] == pytest.approx(measured)
    assert [row.limit for row in found] == [None] * 8 + [1.4, None]
    assert [row.met for row in found] == [met, True, met, False, met, False, True, False, True, True]


def test_goals_of_what_was_not_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"step\.json does not exist"):
        goals(tmp_path)
    _write_figures(tmp_path, 1.0)
    (tmp_path / "step.json").write_text('{"vgg16, 500 RoIs": {}}')
    with pytest.raises(InputError, match="were not run with 'vgg16, 2000 RoIs'"):
        goals(tmp_path)


def test_make_bench_reads_what_the_demo_makes(tmp_path: Path) -> None:
    """Its default DATA is a split of the demo's data, RUN one of its runs."""
    text = (Path(__file__).parents[1] / "Makefile").read_text()
    default = dict(re.findall(r"^(\w+) \?= (.*)$", text, flags=re.MULTILINE))
    folder, split = default["DATA"].rsplit(":", 1)
    demo = inspect.signature(demo_command).parameters["folder"].default
    assert Path(folder) == demo / "data"
    assert Path(default["RUN"]).parent == demo
    assert Path(default["RUN"]).name in ARMS
    make_scenes(tmp_path / "data", train=1, test=1)
    assert len(build_data([f"{tmp_path / 'data'}:{split}"], CLASSES, "--data")) == 1
