"""`ohem bootstrap` on the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ohem.bootstrap import run as bootstrap
from ohem.bootstrap.config import BootstrapConfig
from ohem.bootstrap.crops import crop_features
from ohem.bootstrap.run import bootstrap_run, use_svms
from ohem.bootstrap.svm import LinearSVM
from ohem.detection.backbones import tiny
from ohem.detection.fast_rcnn import FastRCNN
from ohem.rois import match
from ohem.samplers import AllSampler
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import NAMES, make_toy_coco, training, training_on


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on the toy data, bootstrapped once."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert ohem("train", folder, *training(data, steps=8)).code == 0
    assert ohem("bootstrap", folder).code == 0
    return folder


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "bootstrap" / "eval.json").read_text())
    return report


def test_svms_are_evaluated_as_the_run(run: Path) -> None:
    assert ohem("eval", run).code == 0
    of_run = json.loads((run / "eval.json").read_text())
    result = ohem("bootstrap", run)
    report = report_of(run)
    assert set(of_run) <= set(report)
    assert [report[key] for key in ("metric", "images", "step", "test")] == ["voc07", 2, 8, of_run["test"]]
    assert report["map"] == pytest.approx(np.mean(list(report["ap"].values())))
    assert f"{report['map']:.1f}" in result.out
    # The network separates red and blue rectangles after a few steps, so SVMs on its features must do it too.
    assert report["map"] > 50
    assert report["positives"] == dict.fromkeys(NAMES, 6)
    for name in NAMES:
        assert report["rounds"][name] >= 1
        assert report["negatives"][name] > 6
        assert report["stopped"][name] == "no hard negatives"


def test_features_are_computed_once(run: Path) -> None:
    path = run / "bootstrap" / "features.safetensors"
    made = path.stat().st_mtime_ns
    first = report_of(run)
    assert "computing" not in ohem("bootstrap", run).out
    assert path.stat().st_mtime_ns == made
    assert report_of(run)["ap"] == first["ap"]


def test_features_are_used_for_all_thresholds_but_only_one_step(run: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    assert "made again" not in ohem("bootstrap", other, "--negative-iou", 0.2, "--positive-iou", 0.3).out
    assert min(report_of(other)["positives"].values()) > 6
    assert ohem("train", other, *training(data, steps=9)).code == 0
    assert "made with step 8, now 9: made again" in ohem("bootstrap", other).out


def test_options_are_used(run: Path, data: Path) -> None:
    options = ["--start", 5, "--per-round", 7, "--limit", 9, "--data", f"{data}:train", "--metric", "voc10"]
    result = ohem("bootstrap", run, *options, "--test.scales", 48, 64, "--test.voting", "--test.iterations", 2)
    assert result.code == 0, result.err
    report = report_of(run)
    assert (report["metric"], report["images"]) == ("voc10", 6)
    assert (report["test"]["scales"], report["test"]["voting"]) == ([48, 64], True)
    assert (report["mining"]["start"], report["mining"]["per_round"], report["mining"]["limit"]) == (5, 7, 9)
    assert all(1 <= negatives <= 9 for negatives in report["negatives"].values())


def test_class_without_training_objects_is_never_detected(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    for stem in "abcdef":
        path = folder / "Annotations" / f"{stem}.xml"
        path.write_text(path.read_text().replace("<name>red</name>", "<name>blue</name>"))
    with pytest.warns(UserWarning, match="train has no object of 1 of the classes: 'red'"):
        assert ohem("train", tmp_path / "run", *training(folder, steps=2), "--data.classes", *NAMES).code == 0
    with pytest.warns(UserWarning, match="no training object of red") as warned:
        assert ohem("bootstrap", tmp_path / "run", "--test.score", 0).code == 0
    assert len(warned) == 1
    report = report_of(tmp_path / "run")
    assert report["ap"]["red"] == 0
    assert (report["rounds"]["red"], report["negatives"]["red"]) == (None, None)
    assert report["positives"]["blue"] == 12


def test_coco_data_have_their_metric_and_detections(tmp_path: Path) -> None:
    train, test = make_toy_coco(tmp_path / "coco")
    run = tmp_path / "run"
    assert ohem("train", run, *training_on(train, test, steps=2)).code == 0
    result = ohem("bootstrap", run)
    assert result.code == 0, result.err
    assert report_of(run)["metric"] == "coco"
    assert {"image_id", "category_id", "bbox", "score"} == set(
        json.loads((run / "bootstrap" / "detections.json").read_text())[0]
    )


CROPS = ("--crops", "--crop-size", 32, "--crop-proposals", 12)


@pytest.fixture(scope="module")
def untrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are as they were at first: its learning rate is 0."""
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    assert ohem("train", folder, *training(data, steps=1, recipe="small-sppnet"), *UNTRAINED).code == 0
    return folder


UNTRAINED = ("--model.backbone", "tiny", "--model.weights", "none", "--solver.lr", 0)


def test_a_learning_rate_of_0_keeps_the_initial_weights(data: Path, untrained: Path, tmp_path: Path) -> None:
    options = [*training(data, steps=2, recipe="small-sppnet"), *UNTRAINED]
    assert ohem("train", tmp_path / "longer", *options).code == 0
    states = [torch.load(run / "checkpoint.pt", weights_only=True)["model"] for run in (untrained, tmp_path / "longer")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_svms_on_the_pyramids_of_a_network_that_was_not_trained(untrained: Path) -> None:
    result = ohem("bootstrap", untrained)
    assert result.code == 0, result.err
    report = report_of(untrained)
    assert report["positives"] == dict.fromkeys(NAMES, 6)
    assert 0 <= report["map"] <= 100


def test_svms_on_crops(untrained: Path) -> None:
    """Two colours are separable by random filters, and boxes are right: proposals are, and they are regressed."""
    result = ohem("bootstrap", untrained, *CROPS, "--crop-context", 4)
    assert result.code == 0, result.err
    report = json.loads((untrained / "crops" / "eval.json").read_text())
    assert f"{report['map']:.1f}" in result.out
    assert report["map"] > 50
    assert report["positives"] == dict.fromkeys(NAMES, 6)
    assert (report["mining"]["crop_size"], report["test"]["scales"]) == (32, [])
    assert sorted(path.name for path in (untrained / "crops").iterdir()) == ["eval.json", "features.safetensors"]
    assert "computing" not in ohem("bootstrap", untrained, *CROPS, "--crop-context", 4, "--no-box-regression").out
    unmoved = json.loads((untrained / "crops" / "eval.json").read_text())
    assert unmoved["ap"].keys() == report["ap"].keys()
    assert (
        "made with crop context 4, now 0: made again" in ohem("bootstrap", untrained, *CROPS, "--crop-context", 0).out
    )


def test_proposals_of_crops_are_the_first_ones(untrained: Path) -> None:
    counts = []
    for top in (1, 4):
        assert ohem("bootstrap", untrained, *CROPS[:-1], top, "--crop-context", 4).code == 0
        counts.append(len(load_file(untrained / "crops" / "features.safetensors")["objects"]))
    assert 6 * 2 < counts[0] <= 6 * (2 + 1) < counts[1] <= 6 * (2 + 4)


def test_stopped_crops_go_on_where_they_stopped(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def stopping(model: Any, example: Any) -> Any:
        if len(done) == 3:
            done.append("stop")
            raise KeyboardInterrupt
        done.append(example.id)
        return crop_features(model, example)

    monkeypatch.setattr(bootstrap, "crop_features", stopping)
    options = [*CROPS, "--crop-context", 1]
    with pytest.raises(KeyboardInterrupt):
        bootstrap_run(untrained, (), None, BootstrapConfig(crops=True, crop_size=32, crop_context=1, crop_proposals=12))
    assert ohem("bootstrap", untrained, *options).code == 0
    assert len(done) == len({*done}) == 7
    assert not (untrained / "crops" / "features.parts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop-size", 16], "--crop-size 16 is out of range: give 32 to 4096"),
        (["--crop-size", 64, "--crop-context", 32], "--crop-context 32 leaves no pixel"),
        (["--crop-proposals", 0], "--crop-proposals 0"),
        (["--box-iou", 0.4], "--box-iou 0.4 is out of range: give 0.5 to 1"),
        (["--box-penalty", 0], "--box-penalty 0"),
    ],
)
def test_crops_that_cannot_be_are_reported(untrained: Path, options: list[object], message: str) -> None:
    assert message in sentence(ohem("bootstrap", untrained, "--crops", *options))


@pytest.mark.parametrize("options", [["--crop-size", 64], ["--no-box-regression"], ["--box-iou", 0.7]], ids=str)
def test_options_of_crops_need_crops(untrained: Path, options: list[object]) -> None:
    text = sentence(ohem("bootstrap", untrained, *options))
    assert f"{str(options[0]).replace('--no-', '--')} is for crops: add --crops" in text


def test_bad_input_is_reported(run: Path, data: Path, tmp_path: Path) -> None:
    assert "is not a run" in sentence(ohem("bootstrap", tmp_path / "nothing"))
    assert ohem("train", tmp_path / "run", *training(data, steps=1)).code == 0
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert "no checkpoint yet" in sentence(ohem("bootstrap", tmp_path / "run"))
    assert "--limit 0" in sentence(ohem("bootstrap", run, "--limit", 0))
    assert "--cost 0.0" in sentence(ohem("bootstrap", run, "--cost", 0))
    assert "--seed -1" in sentence(ohem("bootstrap", run, "--seed", -1))
    assert "--easy -0.5" in sentence(ohem("bootstrap", run, "--easy", -0.5))
    assert "--positive-iou 0.2" in sentence(ohem("bootstrap", run, "--positive-iou", 0.2))
    assert "does not exist" in sentence(ohem("bootstrap", run, "--data", f"{tmp_path / 'nowhere'}:test"))


def test_scores_are_the_logistic_function_of_the_margins() -> None:
    torch.manual_seed(0)
    model = FastRCNN(tiny(16), 4, AllSampler()).eval()
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[8.0, 8, 40, 40], [40, 8, 72, 40]])
    features, which = model.distinct_features(model.backbone([image]), match([boxes], [_nothing()]))
    rng = np.random.default_rng(0)
    svms = [LinearSVM(rng.normal(size=16), bias, 0, 1, 1, 1, "") for bias in (0.5, -0.5)]
    use_svms(model, [svms[0], None, svms[1]])
    seen: list[torch.Tensor] = []
    model.post_process = lambda scores, deltas, boxes, size: seen.append(scores) or {}  # type: ignore[assignment,func-returns-value]
    with torch.no_grad():
        model([image], [boxes])
    for label, svm in ((1, svms[0]), (3, svms[1])):
        margins = features[which].detach().numpy() @ svm.weights + svm.bias
        np.testing.assert_allclose(seen[0][:, label], 1 / (1 + np.exp(-margins)), rtol=1e-4)
    assert seen[0][:, 2].isnan().all()


def _nothing() -> dict[str, torch.Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
