"""RUN/mining: its boxes are in pixels of the pictures, whatever the detector does with their size, mirrored or not."""

from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from ohem.data.sources import open_dataset
from ohem.rois import highest_iou
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training

FASTER = ["--sampler.name", "ohem", "--sampler.batch-size", 64, "--model.weights", "none"]
KINDS = {
    "fast": ("demo-ohem", 3, ["--data.flip", "--sampler.batch-size", 32]),
    "faster": ("fasterrcnn-mobilenet-v3-large-320-fpn", 1, FASTER),
    "ssdlite": ("ssdlite320-mobilenet-v3-large", 1, ["--sampler.name", "ohem", "--model.weights", "none"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_in_pixels_of_the_picture(data: Path, tmp_path: Path, kind: str) -> None:
    recipe, steps, options = KINDS[kind]
    assert ohem("train", tmp_path / "run", *training(data, steps=steps, recipe=recipe), *options).code == 0
    rows = parquet.read_table(tmp_path / "run" / "mining" / "rows.parquet").to_pylist()
    images = open_dataset([f"{data}:train"])
    foreground = [row for row in rows if row["object"] >= 0]
    assert len(foreground) > 5
    for row in foreground:
        target = images.target(images.ids.index(row["image"]))
        box = torch.tensor([[row["x1"], row["y1"], row["x2"], row["y2"]]], dtype=torch.float64)
        iou, best = highest_iou(box, target["boxes"].double())
        assert iou.item() == pytest.approx(row["iou"], abs=1e-5)
        assert best.item() == row["object"]
        assert target["labels"][best].item() == row["label"]
    assert all(row["taken_for"] != row["label"] for row in rows)
    assert (rows[0]["taken_for"] >= 0) == (kind != "ssdlite")


def test_a_run_without_a_log(data: Path, tmp_path: Path) -> None:
    assert ohem("train", tmp_path / "run", *training(data, steps=1), "--run.no-mining-log").code == 0
    assert not (tmp_path / "run" / "mining").exists()


def test_the_log_needs_pyarrow(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = ohem("train", tmp_path / "run", *training(data, steps=1))
    assert 'needs PyArrow: pip install "ohem[train]"' in sentence(result)
    assert not (tmp_path / "run").exists()
