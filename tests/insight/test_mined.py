"""The mining log as evidence about the annotations that a run was trained on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ohem.data.sources import open_dataset
from ohem.insight.suspects import mined as mining
from ohem.insight.suspects.mined import MinedImage, audit_mined, feature, read_mined
from ohem.insight.suspects.scores import Suspect, audit
from ohem.mining_log import LoggedImage, MiningLog
from ohem.rois import RoIs
from ohem.samplers import AllSampler, RankSampler
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training

CORNER = [60.0, 40.0, 75.0, 60.0]
"""Background of the toy image b."""


def logged(folder: Path, source: str, steps: int = 2, number: int = 2) -> None:
    """Logs that a RoI on each object has a loss of 1, but that of the second one of image a 8; and that the detector
    takes a background RoI of image b for the class 2 with the probability 0.5."""
    data = open_dataset([source])
    log = MiningLog(RankSampler(100), folder / "mining")
    scores = torch.nn.Identity()
    log.watch(scores)
    for step in range(1, steps + 1):
        for index, name in enumerate(data.ids):
            target = data.target(index)
            boxes = torch.cat([target["boxes"][:number], torch.tensor([CORNER])])
            labels = torch.cat([target["labels"][:number], torch.tensor([0])])
            rois = RoIs(
                boxes,
                torch.zeros(len(boxes), dtype=torch.int64),
                labels,
                torch.zeros_like(boxes),
                (labels > 0).float(),
                1,
            )
            losses = torch.ones(len(boxes))
            losses[1] = 8.0 if name.endswith("a") else 1.0
            log.begin_step([LoggedImage(name, target["boxes"][:number], (1.0, 1.0))], step)
            chosen = log(rois, lambda *_, losses=losses: losses)  # type: ignore[misc]
            probabilities = torch.full((len(boxes), 3), 1e-9)
            probabilities[torch.arange(len(boxes)), labels] = 1.0
            if name.endswith("b"):
                probabilities[-1] = torch.tensor([0.5, 0.0, 0.5]).clamp(min=1e-9)
            scores(probabilities[chosen].log().requires_grad_())
    log.save()


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"{make_toy(tmp_path / 'data')}:train"


def suspect(image: int, given: int | None, box: list[float] | None = None, label: int | None = None) -> Suspect:
    corners = None if box is None else (box[0], box[1], box[2], box[3])
    return Suspect(image, "missing" if given is None else "background", 0.2, given, None, None, corners, label)


def test_the_evidence_is_the_relative_loss_and_the_share_of_visits(source: str, tmp_path: Path) -> None:
    logged(tmp_path, source)
    mined = read_mined(tmp_path, open_dataset([source]))
    assert set(mined) == set(range(6))
    assert feature(suspect(0, 0), mined[0]) == 0.0
    assert feature(suspect(0, 1), mined[0]) == pytest.approx(math.log(8.05 / 1.05))
    assert feature(suspect(1, None, CORNER, 2), mined[1]) == pytest.approx(0.5, abs=1e-3)
    assert feature(suspect(1, None, CORNER, 1), mined[1]) == 0.0
    assert feature(suspect(1, None, [0.0, 0.0, 9.0, 9.0], 2), mined[1]) == 0.0
    assert feature(suspect(0, None, CORNER, 2), mined[0]) == pytest.approx(0.0, abs=1e-3)


def test_a_step_counts_once() -> None:
    two = np.asarray([CORNER, CORNER])
    mined = MinedImage(np.zeros(0), two, np.asarray([2, 2]), np.asarray([0.1, 0.3]), np.asarray([7, 7]))
    assert feature(suspect(0, None, CORNER, 2), mined) == pytest.approx(0.3)


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
    monkeypatch.setattr(mining, "GIVEN", (-1.0, 1.0, 2.0))
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
    rois = RoIs(
        target["boxes"],
        torch.zeros(2, dtype=torch.int64),
        target["labels"],
        torch.zeros(2, 4),
        torch.ones(2),
        1,
    )
    log.begin_step([LoggedImage(data.ids[0], target["boxes"], (1.0, 1.0))], 1)
    log(rois, lambda *_: torch.ones(2))
    log.save()
    assert feature(suspect(0, 0), read_mined(tmp_path, data)[0]) == 0.0
