"""Files are whole, whoever else writes them."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ohem import files
from ohem.errors import InputError
from ohem.files import check_output, digest_of_file, digests_of_files, replacing


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


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"some content")
    assert digest_of_file(path) == hashlib.sha256(b"some content").hexdigest()[:16]
    (tmp_path / "b").write_bytes(b"other")
    paths = [tmp_path / "b", path, tmp_path / "b"]
    assert digests_of_files(paths) == [digest_of_file(p) for p in paths]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        digests_of_files([path, tmp_path / "nowhere"])


def test_a_digest_is_computed_again_where_the_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"some content")
    stat = path.stat()
    first = digest_of_file(path)
    with monkeypatch.context() as patched:
        patched.setattr(files.hashlib, "file_digest", None)  # it is not read a second time
        assert digest_of_file(path) == first
    time.sleep(0.01)
    path.write_bytes(b"SOME content")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_of_file(path) == hashlib.sha256(b"SOME content").hexdigest()[:16]


def test_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    check_output(tmp_path / "new", [one, tmp_path / "gone"])
    check_output(other, [one, tmp_path / "gone"])
    (tmp_path / "soft").symlink_to(one)
    (tmp_path / "hard").hardlink_to(one)
    for name in ("one", "soft", "hard", "../" + tmp_path.name + "/one"):
        with pytest.raises(InputError, match="would be overwritten"):
            check_output(tmp_path / name, [other, one])
