"""Damage to the files of a run: reading gives the written content or one sentence, and nothing else."""

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ohem.errors import InputError
from ohem.evaluation import report
from ohem.training import checkpoint, roi_loss, snapshots
from ohem.training.logs.metrics_log import NAME as METRICS
from ohem.training.logs.metrics_log import read_metrics
from tests.evaluation.test_report import REPORT, write_toy_report
from tests.helpers.damage import KINDS, damaged
from tests.training.logs.test_metrics_log import write
from tests.training.test_checkpoint import trained
from tests.training.test_roi_loss import ROW

SNAPSHOT = "snapshots/step-0000005.safetensors"
READERS: dict[str, Callable[[Path], Any]] = {
    checkpoint.NAME: checkpoint.load,
    METRICS: read_metrics,
    roi_loss.NAME: roi_loss.read,
    report.NAME: lambda run: report.read_report(run / report.NAME),
    SNAPSHOT: lambda run: snapshots.load(run / SNAPSHOT),
}
READERS_BY_FILE = 12  # files of a kind of damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    checkpoint.save(run, trained() | {"metrics": write(run, 6)})
    snapshots.save_snapshot(run, 5, {"layer.weight": torch.arange(64.0).reshape(8, 8), "scale": torch.tensor(2.0)})
    roi_loss.add_row(run, ROW)
    write_toy_report(run / report.NAME, REPORT)
    return run


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_noticed(name: str, kind: str, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    content, expected = (run / name).read_bytes(), READERS[name](whole)
    rng = random.Random(f"{name} {kind}")
    sentences: list[str] = []
    for number in range(READERS_BY_FILE):
        (run / name).write_bytes(damaged(content, kind, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                actual = READERS[name](run)
        except InputError as error:
            sentences.append(str(error))
        else:
            assert same(expected, actual), f"damage {number} changes what is read"
    assert len(sentences) > READERS_BY_FILE // 2
    assert all(Path(name).name in sentence for sentence in sentences)
