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
from ohem.files import check_output, digest_of_file, digests_of_files, locked, replacing


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


HOLD = """
import sys, time, pathlib, ohem.files
with ohem.files.locked(pathlib.Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_process_holds_a_lock_and_a_killed_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    line = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="the thing is in use by another process"), locked(path, "the thing"):
            pass
        started = time.monotonic()
        monkeypatch.setenv(files.WAIT, "0.2")
        with pytest.raises(InputError, match="in use"), locked(path, "the thing"):
            pass
        assert time.monotonic() - started >= 0.2
        other.kill()
    assert path.exists()
    with locked(path, "the thing"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_from_one_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its file is removed at the end, also by an error."""
    path = tmp_path / ".lock"
    for _ in range(3):
        with pytest.raises(KeyError), locked(path, "the thing"):
            raise KeyError
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(files.WAIT, "soon")
    with pytest.raises(InputError, match="OHEM_WAIT_LOCKS is 'soon': give a number of seconds"), locked(path, "it"):
        pass


COUNT = """
import sys, pathlib, ohem.files
lock, count = map(pathlib.Path, sys.argv[1:])
for _ in range(25):
    with ohem.files.locked(lock, "the count", wait=60):
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_a_lock_that_is_removed_lets_in_one_at_a_time(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    line = [sys.executable, "-c", COUNT, str(tmp_path / ".lock"), str(count)]
    running = [subprocess.Popen(line) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert count.read_text() == "75"


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
