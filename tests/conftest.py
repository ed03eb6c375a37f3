"""Settings of every test: few threads, since two processes of many threads each crawl (see CONTRIBUTING.md)."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.helpers.command_line import ohem
from tests.helpers.toy_data import make_toy

torch.set_num_threads(1 if {"PYTEST_XDIST_WORKER", "OMP_NUM_THREADS"} & os.environ.keys() else 2)
# transformers requires torch 2.5.
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
    collect_ignore = ["integrations/test_transformers.py", "losses/test_trainer.py"]
settings.register_profile("ohem", deadline=None, max_examples=50)
settings.load_profile("ohem")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a tiny data set in VOC layout with its proposals. Tests only read it, or change a copy."""
    folder = make_toy(tmp_path_factory.mktemp("data") / "toy")
    assert ohem("propose", f"{folder}:train", f"{folder}:test", "--jobs", 1).code == 0
    return folder
