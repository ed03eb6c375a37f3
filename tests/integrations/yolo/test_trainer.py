"""Mining in the trainer of ultralytics: from Python, from the command line, resumed, and what it saves."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as parquet
import pytest

from ohem import OHEMSampler, RatioSampler, with_ohem
from ohem.errors import InputError
from tests.integrations.yolo.models import ENVIRONMENT, batch, make

from ultralytics import YOLO  # isort: skip  # after its settings

from ohem.integrations.yolo.__main__ import main, read_sampler


def test_trainings_mine_and_save_nothing_of_ohem(tmp_path: Path) -> None:
    """Two steps an epoch, two heads: four calls. The first training is the example."""
    command = [sys.executable, "-m", "tests.integrations.yolo.trainings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("Recorder(RatioSampler(negatives_per_positive=3, min_negatives=16") for line in lines)
    assert "calls in the first epoch: 4" in lines
    assert "calls after the resumed epoch: 8" in lines
    assert "loaded: DetectionModel" in lines
    mined = [line for line in (done.stdout + done.stderr).splitlines() if "of the last mini-batch chosen" in line]
    assert mined[-1].startswith("ohem: 28 of 336 anchors"), mined
    rows = parquet.read_table(tmp_path / "mining" / "rows.parquet").to_pydict()
    assert rows["step"] == [1] * 10 + [2] * 10
    assert {Path(image).suffix for image in rows["image"]} == {".png"}
    assert set(rows["placed"]) == {0}  # pictures are augmented


@pytest.fixture(scope="module")
def yolo() -> YOLO:
    model = YOLO("yolo11n.yaml")
    model.model = make()
    return model


def begin_training(callbacks: Any) -> SimpleNamespace:
    """Calls the callbacks of the start of a training. Returns the trainer, whose model is a new one."""
    trainer = SimpleNamespace(model=make())
    for callback in callbacks["on_pretrain_routine_end"]:
        callback(trainer)
    return trainer


def test_every_model_of_a_trainer_mines(yolo: YOLO) -> None:
    with_ohem(yolo, OHEMSampler(8))
    before = len(yolo.callbacks["on_train_epoch_end"])
    assert with_ohem(yolo, OHEMSampler(5)) is yolo
    assert len(yolo.callbacks["on_train_epoch_end"]) == before, "it would log twice"
    trainer = begin_training(yolo.callbacks)
    trainer.model(batch())
    assert yolo.mining is trainer.model.mining
    assert yolo.mining.statistics()["chosen"] == 10
    assert yolo.model.mining is yolo.mining


def test_every_process_of_a_training_mines(yolo: YOLO) -> None:
    """For several GPUs, the trainer pickles its callbacks, and each process loads them."""
    with_ohem(yolo, OHEMSampler(5))
    trainer = begin_training(pickle.loads(pickle.dumps(dict(yolo.callbacks))))
    trainer.model(batch())
    assert trainer.model.mining.statistics()["chosen"] == 10


def test_tune_and_other_tasks_are_refused(yolo: YOLO) -> None:
    with pytest.raises(TypeError, match="tune starts `yolo train`, which does not mine"):
        with_ohem(yolo).tune()
    with pytest.raises(TypeError, match="and not SegmentationModel"):
        with_ohem(YOLO("yolo11n-seg.yaml"))
    with pytest.raises(TypeError, match="not ClassificationModel"):
        with_ohem(YOLO("yolo11n-cls.yaml"))


def test_command_line_chooses_the_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_sampler([]) == RatioSampler(3, min_negatives=256)
    assert read_sampler(["ohem.sampler=ratio", "ohem.negatives_per_positive=5"]) == RatioSampler(5)
    assert read_sampler(["ohem.sampler=ohem", "ohem.nms_iou=None", "ohem.suppress=label"]) == OHEMSampler(
        nms_iou=None, suppress="label"
    )
    with pytest.raises(InputError, match=r"must be one of ohem, random, .*, not missing"):
        read_sampler(["ohem.batch_size=5"])
    with pytest.raises(InputError, match=r"does not take these options: .*pressure"):
        read_sampler(["ohem.sampler=ohem", "ohem.pressure=5"])
    assert main(["detect", "train", "ohem.sampler"]) == 2
    assert "ohem.sampler must be ohem.NAME=VALUE" in capsys.readouterr().err


def test_settings_of_the_user_stay() -> None:
    from ultralytics.utils import USER_CONFIG_DIR

    assert str(USER_CONFIG_DIR).startswith(ENVIRONMENT["YOLO_CONFIG_DIR"])
