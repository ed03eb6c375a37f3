"""Atomic writing of files, with other writers and failures."""

import errno
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from ohem.errors import InputError
from ohem.io import digests
from ohem.io.digests import check_crcs, digest_of_file, digests_of_files
from ohem.io.files import atomic_write, check_output, describe_os_error, remove_leftovers


def test_a_failed_write_does_not_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("whole")
    with pytest.raises(FileExistsError), atomic_write(path) as temporary:
        (temporary.write_text("ha"), tmp_path.mkdir())
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    lines = (
        "import sys, pathlib, ohem.io.files\nwith ohem.io.files.atomic_write(pathlib.Path(sys.argv[1])) as temporary:\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text("ours")
        subprocess.run([sys.executable, "-c", f"{lines}    temporary.write_text('theirs')", str(path)], check=True)
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"some content")
    assert digest_of_file(path) == hashlib.sha256(b"some content").hexdigest()[:16]
    (tmp_path / "b").write_bytes(b"other")
    paths = [tmp_path / "b", path, tmp_path / "b"]
    assert list(digests_of_files(paths)) == [digest_of_file(p) for p in paths]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(digests_of_files([path, tmp_path / "nowhere"]))


def test_a_digest_is_computed_again_where_the_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"some content")
    stat = path.stat()
    first = digest_of_file(path)
    with monkeypatch.context() as patched:
        patched.setattr(digests.hashlib, "sha256", None)  # it is not read a second time
        assert digest_of_file(path) == first
    time.sleep(0.01)
    path.write_bytes(b"SOME content")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_of_file(path) == hashlib.sha256(b"SOME content").hexdigest()[:16]


def write_and_fail(path: Path, error: OSError) -> OSError:
    """Returns the error that `atomic_write` raises."""
    with pytest.raises(OSError) as caught, atomic_write(path):
        raise error
    return caught.value


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("name", [None, "temporary"])
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path, name: str | None, second: bool) -> None:
    path = tmp_path / "numbers.csv"
    temporary = str(tmp_path / f".numbers.csv.{os.getpid()}.tmp")
    first = temporary if name else None
    error = OSError(errno.EROFS, "Read-only file system", first, None, *([str(path)] if second and name else []))
    raised = write_and_fail(path, error)
    assert raised.filename == str(path)
    assert ".tmp" not in str(raised)
    assert describe_os_error(raised) == f"{path}: Read-only file system: choose a place that can be written to"


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_message_advises_to_make_room_only_where_space_is_short(number: int) -> None:
    said = describe_os_error(OSError(number, os.strerror(number), "/a/.b.csv.123.tmp"))
    assert said.startswith(f"/a/b.csv: {os.strerror(number)}")
    assert ("make room" in said) == (number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@pytest.mark.parametrize("filename", [None, b"/a/.b.1.tmp", Path("/a/.b.1.tmp"), 3, "/a/.b.tmp", ".b.1.tmp"])
def test_any_error_can_be_described(filename: object) -> None:
    said = describe_os_error(OSError(errno.EIO, "Input/output error", filename))
    assert "Input/output error" in said
    assert ".1.tmp" not in said
    assert describe_os_error(OSError("no number")) == "no number"
    assert describe_os_error(OSError()) == "OSError"


def dead_process() -> int:
    """Returns the id of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


def test_leftovers_of_dead_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = dead_process()
    kept = [f".a.csv.{os.getpid()}.tmp", ".a.csv.1.tmp", "a.csv", ".notes.tmp", f"a.{dead}.tmp", f".{dead}.tmp"]
    for name in [*kept, f".a.csv.{dead}.tmp", f".b.pt.{dead}.tmp", f".c.{10**30}.tmp"]:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{dead}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept}
    remove_leftovers(tmp_path / "nowhere")


def test_an_output_may_be_anything_but_an_input(tmp_path: Path) -> None:
    read, other, link, hard = (tmp_path / name for name in ("read.json", "other.json", "link", "hard"))
    read.write_text("{}")
    other.touch()
    link.symlink_to(read)
    hard.hardlink_to(read)
    inputs = [tmp_path / "absent.png", read]
    for allowed in (other, tmp_path / "new"):
        check_output(allowed, inputs)
    (tmp_path / "x").mkdir()
    for refused in (read, link, hard, tmp_path / "x" / ".." / "read.json"):
        with pytest.raises(InputError, match="would be overwritten"):
            check_output(refused, inputs)


def test_a_flipped_bit_of_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    check_crcs(path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 500] ^= 16
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        check_crcs(path)
    torch.load(path)  # it does not notice, which is why the check is needed
