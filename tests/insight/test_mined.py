"""The mining log as evidence about the annotations that a run was trained on."""

import math
from pathlib import Path

import pytest
import torch

from ohem.data.sources import open_dataset
from ohem.insight.suspects import mined as mining
from ohem.insight.suspects.mined import audit_mined, read_mined
from ohem.insight.suspects.scores import audit
from ohem.mining_log import LoggedImage, MiningLog
from ohem.rois import RoIs
from ohem.samplers import AllSampler, RankSampler
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training


def logged(folder: Path, source: str, number: int = 2) -> None:
    """Logs two visits: a RoI on each object has a loss of 1, that on the second one of image a has 8."""
    data = open_dataset([source])
    log = MiningLog(RankSampler(100), folder / "mining")
    for step in (1, 2):
        for index, name in enumerate(data.ids):
            target = {key: value[:number] for key, value in data.target(index).items()}
            losses = torch.ones(number)
            losses[-1] = 8.0 if name.endswith("a") else 1.0
            log.begin_step([LoggedImage(name, target["boxes"], (1.0, 1.0))], step)
            log(rois_of(target), lambda *_, losses=losses: losses)  # type: ignore[misc]
    log.save()


def rois_of(target: dict[str, torch.Tensor]) -> RoIs:
    count = len(target["labels"])
    images = torch.zeros(count, dtype=torch.int64)
    return RoIs(target["boxes"], images, target["labels"], torch.zeros(count, 4), torch.ones(count), 1)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"{make_toy(tmp_path / 'data')}:train"


def test_the_evidence_is_the_relative_loss(source: str, tmp_path: Path) -> None:
    logged(tmp_path, source)
    mined = read_mined(tmp_path, open_dataset([source]))
    assert set(mined) == set(range(6))
    assert mined[0].tolist() == pytest.approx([0.0, math.log(8.05 / 1.05)])
    assert mined[1].tolist() == [0.0, 0.0]


def test_images_whose_boxes_changed_are_left_out(source: str, tmp_path: Path) -> None:
    logged(tmp_path, source, number=1)
    assert read_mined(tmp_path, open_dataset([source])) == {}


def test_a_run_without_a_log_is_judged_by_its_detections(source: str, tmp_path: Path) -> None:
    data = open_dataset([source])
    assert read_mined(tmp_path, data) == {}
    targets = [data.target(i) for i in range(len(data))]
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}]
    assert audit_mined(targets, nothing * len(data), {}) == audit(targets, nothing * len(data))


def test_hard_boxes_become_more_suspect_and_easy_ones_less(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "COEFFICIENTS", (-1.0, 1.0, 2.0))
    logged(tmp_path, source)
    data = open_dataset([source])
    targets = [data.target(i) for i in range(len(data))]
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}]
    predictions = nothing * len(data)
    before = {(s.image, s.given): s.score for s in audit(targets, predictions)}
    after = audit_mined(targets, predictions, read_mined(tmp_path, data))
    assert (after[0].image, after[0].given) == (0, 1)
    assert after[0].score > before[0, 1]
    assert all(s.score < before[s.image, s.given] for s in after[1:])
    assert [s.score for s in after] == sorted((s.score for s in after), reverse=True)


def test_an_audit_by_a_run_reads_its_log(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ohem("train", run, *training(data, steps=4)).code == 0
    line = ["audit", f"{data}:train", "--run", run, "--out", tmp_path / "out"]
    assert ohem(*line).code == 0
    (run / "mining" / "images.parquet").write_bytes(b"PAR1")
    assert "images.parquet is no table of a mining log" in sentence(ohem(*line))


def test_a_sampler_without_losses_leaves_no_evidence_of_loss(source: str, tmp_path: Path) -> None:
    data = open_dataset([source])
    log = MiningLog(AllSampler(), tmp_path / "mining")
    target = data.target(0)
    log.begin_step([LoggedImage(data.ids[0], target["boxes"], (1.0, 1.0))], 1)
    log(rois_of(target), lambda *_: torch.ones(2))
    log.save()
    assert read_mined(tmp_path, data) == {}
