"""The examples run within seconds and reach the result that they promise."""

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.integrations.optional import import_quietly

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Imports the example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_segmentation_detects_the_disc(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("segmentation").main(steps=40) > 0.8
    assert "pixels kept, mean loss" in capsys.readouterr().out


def test_plain_loop_learns_the_rare_label() -> None:
    assert load("plain_loop").main(steps=60) > 0.9


@pytest.mark.parametrize("miner", [None, "BatchHardMiner"])
def test_embedding_of_digits_is_trained_on_hard_triplets(miner: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("hard_triplets").main(steps=40, random_steps=10, miner=miner) > 0.85
    assert "of the triplets violate" in capsys.readouterr().out


def test_unet_of_smp_detects_the_disc(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the import of segmentation_models_pytorch
        assert load("smp_segmentation").main(steps=25) > 0.8
    assert "pixels kept, mean loss" in capsys.readouterr().out


def test_detector_of_monai_detects_the_cube(capsys: pytest.CaptureFixture[str]) -> None:
    import_quietly("monai.apps.detection.networks.retinanet_detector")
    assert load("monai_retinanet").main(steps=15) > 0.3
    assert "64 of" in capsys.readouterr().out


def test_lightning_logs_what_was_mined(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Lightning and TensorBoard
        logged = load("lightning_module").main(2, tmp_path)
    assert logged["mining/chosen"] == 256
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.skipif(torch.__version__.startswith("2.4"), reason="transformers requires torch 2.5")
def test_trainer_of_hugging_face_mines(capsys: pytest.CaptureFixture[str]) -> None:
    model, loss = load("hugging_face_trainer").main(steps=2, batch=2)
    assert re.search(r"^step 2: loss .* of 200 queries chosen", capsys.readouterr().out, flags=re.MULTILINE)
    assert 0 < model.mining.statistics()["chosen"] < 200
    assert loss.mining["kept"] == 1
