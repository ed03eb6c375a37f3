"""Digests of many files are remembered, and are never those of another content."""

import os
import sqlite3
from pathlib import Path

import pytest

from ohem.io import digests
from ohem.io.digests import digest_of_file, digests_of_files
from ohem.io.files import caches_folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Returns files that were changed a minute ago, in a cache folder of their own where three are many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "MANY", 3)
    monkeypatch.setattr(digests, "_UNSETTLED", -1e12)  # their time of change, which cannot be set, is now
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


def new_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Forgets what this process knows. Returns the names of files that are read from now on."""
    monkeypatch.setattr(digests, "_digests", {})
    read: list[str] = []
    whole = Path.open

    def record(path: Path, *arguments: object, **options: object) -> object:
        read.append(path.name)
        return whole(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", record)
    return read


def test_unchanged_files_are_read_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(digests_of_files(files))
    read = new_process(monkeypatch)
    assert list(digests_of_files(files)) == first
    assert read == []


def test_changed_and_new_files_are_read(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(digests_of_files(files))
    stat = files[1].stat()
    files[1].write_text("B")  # of the same size and time
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    files.append(files[0].with_name("d"))
    files[-1].write_text("d")
    read = new_process(monkeypatch)
    second = list(digests_of_files(files))
    assert sorted(read) == ["b", "d"]
    assert (second[0], second[2]) == (first[0], first[2])
    assert second[1] != first[1]
    read = new_process(monkeypatch)
    assert list(digests_of_files(files)) == second
    assert read == []


def test_files_that_have_just_changed_are_not_remembered(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_UNSETTLED", 2e9)
    list(digests_of_files(files))
    read = new_process(monkeypatch)
    list(digests_of_files(files))
    assert sorted(read) == ["a", "b", "c"]


def test_few_files_are_not_remembered(files: list[Path]) -> None:
    list(digests_of_files(files[:2]))
    assert not caches_folder().exists()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(200)])
def test_damaged_memory_is_made_anew(files: list[Path], content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(digests_of_files(files))
    memory = caches_folder() / digests.MEMORY
    memory.write_bytes(content)
    for _ in range(2):  # it is removed, then written
        new_process(monkeypatch)
        assert list(digests_of_files(files)) == first
    read = new_process(monkeypatch)
    assert list(digests_of_files(files)) == first
    assert read == []


def test_memory_that_cannot_be_used_is_left_out(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    caches_folder().parent.mkdir()
    caches_folder().write_text("a file in place of the folder")
    assert list(digests_of_files(files)) == [digest_of_file(path) for path in files]
    caches_folder().unlink()
    list(digests_of_files(files))
    with sqlite3.connect(caches_folder() / digests.MEMORY) as other:
        other.execute("DROP TABLE digests")
        other.execute("CREATE TABLE digests (path TEXT)")  # of another version
    other.close()
    new_process(monkeypatch)
    assert list(digests_of_files(files)) == [digest_of_file(path) for path in files]
