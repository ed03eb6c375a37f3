"""The benchmark of wrong annotations plants what it says and passes options on; its other ideas follow their rules."""

import argparse
from pathlib import Path

import pytest
import torch
from benchmarks.common import parse_with_more
from benchmarks.noise.ideas import Trimmed, Visits
from benchmarks.noise.plant import write_noisy

from ohem.data.sources import open_dataset
from ohem.samplers import OHEMSampler
from tests.helpers.make_rois import make_rois
from tests.helpers.toy_data import make_toy


def counts(source: str) -> tuple[int, list[str]]:
    data = open_dataset([source], ["blue", "red"])
    names = [data.classes[label - 1] for i in range(len(data)) for label in data.target(i)["labels"].tolist()]
    return len(data), names


@pytest.mark.filterwarnings("ignore:.*without an object:UserWarning")
def test_a_share_of_the_boxes_is_dropped_or_gets_another_class(tmp_path: Path) -> None:
    source = f"{make_toy(tmp_path / 'data')}:train"
    images, right = counts(source)
    _, fewer = counts(write_noisy(source, tmp_path / "missing", "missing", 0.25))
    again, swapped = counts(write_noisy(source, tmp_path / "class", "class", 0.5))
    assert (images, again, len(right)) == (6, 6, 12)
    assert len(fewer) == 9
    assert sum(a != b for a, b in zip(right, swapped, strict=True)) == 6
    assert counts(write_noisy(source, tmp_path / "none", "missing", 0.0)) == (images, right)


def test_options_after_two_dashes_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    monkeypatch.setattr("sys.argv", ["run", "a:b", "--seeds", "1", "2", "--", "--solver.steps", "5"])
    given = parse_with_more(parser)
    assert (given.source, given.seeds, given.options) == ("a:b", [1, 2], ["--solver.steps", "5"])
    monkeypatch.setattr("sys.argv", ["run", "a:b"])
    assert parse_with_more(parser).options == []


def test_the_trimmed_share_grows() -> None:
    rois, losses = make_rois([0, 0, 0, 0]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    sampler = Trimmed(OHEMSampler(1, nms_iou=None), confidence=0.5, warmup=2)
    chosen = [sampler(rois, lambda *_: losses).tolist() for _ in range(3)]
    assert chosen == [[1], [2], [2]]  # a quarter of the four RoIs is trimmed, then a half


def test_a_suspect_of_one_visit_is_mined() -> None:
    rois, losses = make_rois([0, 0]), torch.tensor([4.0, 0.1])
    sampler = Visits(OHEMSampler(1, nms_iou=None), warmup=0)
    assert [sampler(rois, lambda *_: losses).tolist() for _ in range(3)] == [[0], [1], [1]]
    assert sampler(rois, lambda *_: losses.flip(0)).tolist() == [1]
