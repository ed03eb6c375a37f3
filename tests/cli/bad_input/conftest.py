"""Data that a test may damage, and the folder of its run."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def data(data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set and its proposals."""
    return Path(shutil.copytree(data, tmp_path / "toy"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"
