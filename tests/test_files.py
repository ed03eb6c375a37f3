"""Files are whole, whoever else writes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from ohem.files import replacing


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("whole")
    with pytest.raises(FileExistsError), replacing(path) as beside:
        (beside.write_text("ha"), tmp_path.mkdir())
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    lines = "import sys, pathlib, ohem.files\nwith ohem.files.replacing(pathlib.Path(sys.argv[1])) as beside:\n"
    with replacing(path) as beside:
        beside.write_text("ours")
        subprocess.run([sys.executable, "-c", f"{lines}    beside.write_text('theirs')", str(path)], check=True)
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]
