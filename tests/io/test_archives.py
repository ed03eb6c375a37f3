"""Data sets in zip and tar archives, on the disk and at addresses."""

import os
import tarfile
import warnings
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from shutil import make_archive

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ohem.data.dataset import DetectionSet
from ohem.data.sources import open_dataset
from ohem.errors import InputError
from ohem.io.archives import local_file, unpacked, without_chains
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo
from tests.io.http_server import serving
from tests.io.test_remote import check_equal

FORMATS = {"zip": "zip", "tar": "tar", "gztar": "tar.gz"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the toy data in every format, and archives of them. Tests only read them."""
    place = tmp_path_factory.mktemp("packed")
    make_toy(place / "data" / "voc")
    make_toy_coco(place / "data" / "coco")
    make_toy_yolo(place / "data" / "yolo")
    for kind in FORMATS:
        make_archive(str(place / "all"), kind, place / "data")
    make_archive(str(place / "voc"), "zip", place / "data" / "voc")
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets an empty cache of the user, and no proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(source: str) -> DetectionSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the one empty label file
        return open_dataset([source])


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("{0}/all.zip/voc:train", "{0}/data/voc:train"),
        ("{0}/voc.zip:train", "{0}/data/voc:train"),
        ("{0}/all.tar/coco/train.json:{0}/all.tar/coco/images", "{0}/data/coco/train.json:{0}/data/coco/images"),
        ("{0}/all.tar.gz/yolo/data.yaml:val", "{0}/data/yolo/data.yaml:val"),
        ("zip://voc::{0}/all.zip:train", "{0}/data/voc:train"),
        (
            "zip://coco/train.json::{0}/all.zip:tar://coco/images::{0}/all.tar.gz",
            "{0}/data/coco/train.json:{0}/data/coco/images",
        ),
        ("tar://yolo/data.yaml::{0}/all.tar.gz:train", "{0}/data/yolo/data.yaml:train"),
    ],
)
def test_archives_hold_the_same_data(source: str, local: str, folder: Path) -> None:
    expected = opened(local.format(folder))
    check_equal(opened(source.format(folder)), expected)
    with serving(folder) as server:
        check_equal(opened(source.format(server.address)), expected)
        assert server.downloads()
        check_equal(opened(source.format(server.address)), expected)
        assert server.downloads() == []


def test_an_archive_is_unpacked_once_until_it_changes(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes((folder / "all.zip").read_bytes())
    place = Path(unpacked(f"{archive}/voc"))
    (place / "kept").touch()
    assert unpacked(f"{archive}/voc") == str(place)
    assert (place / "kept").exists()
    os.utime(archive, (1, 1))
    assert unpacked(f"{archive}/voc") == str(place)
    assert not (place / "kept").exists()


def write_zip(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")
    return path


def write_tar(path: Path, name: str, link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 0 if link else 1
        entry.type, entry.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
        archive.addfile(entry, BytesIO(b"x"))
    return path


def check_refused(archive: Path, message: str, cache: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        local_file(f"{archive}/x")
    assert "\n" not in str(error.value)
    assert str(archive) in str(error.value)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["../../x", "a/../../x", "/x", "..\\x", "C:/x"])
def test_zip_entries_stay_in_their_folder(name: str, tmp_path: Path, cache: Path) -> None:
    check_refused(write_zip(tmp_path / "a.zip", name), "which leads out of the archive", cache)


@pytest.mark.parametrize(("name", "link"), [("../../x", ""), ("a/../../x", ""), ("x", "/etc"), ("x", "../..")])
def test_tar_entries_stay_in_their_folder(name: str, link: str, tmp_path: Path, cache: Path) -> None:
    check_refused(write_tar(tmp_path / "a.tar", name, link), "which leads out of the archive", cache)


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_cut_and_other_files_are_no_archives(suffix: str, folder: Path, tmp_path: Path, cache: Path) -> None:
    content = (folder / f"all.{suffix}").read_bytes()
    for number, part in enumerate((content[: len(content) // 2], b"", b"text" * 1000)):
        archive = tmp_path / f"{number}.{suffix}"
        archive.write_bytes(part)
        check_refused(archive, "is damaged or no archive", cache)


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), suffix=st.sampled_from([*FORMATS.values()]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_ends_in_a_sentence(place: float, value: int, suffix: str, folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / f"all.{suffix}").read_bytes())
    content[int(place * len(content))] = value
    archive = tmp_path / f"damaged.{suffix}"
    archive.write_bytes(content)
    with suppress(InputError):  # and no other error
        local_file(f"{archive}/voc/ImageSets/Main/train.txt")


def test_an_older_python_unpacks_no_tar(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its filter, entries could leave the folder."""
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(InputError, match=r"all\.tar cannot be unpacked safely by this Python"):
        unpacked(f"{folder}/all.tar/voc")
    assert not any(path.is_dir() for path in cache.rglob("*") if path.name.startswith("all"))
    assert Path(unpacked(f"{folder}/all.zip/voc")).is_dir()


def test_what_is_no_archive_stays(tmp_path: Path) -> None:
    (tmp_path / "folder.zip").mkdir()
    for place in (f"{tmp_path}/folder.zip/voc", f"{tmp_path}/nothing.zip/voc", "data/zipped", "https://host/data"):
        assert unpacked(place) == place


def test_chains() -> None:
    chains = {
        "zip://a/b::https://h:80/x.zip:train": "https://h:80/x.zip/a/b:train",
        "tar://a.json::/x.tar.gz:tar://b::/y.TGZ": "/x.tar.gz/a.json:/y.TGZ/b",
        "zip://::x.zip:train": "x.zip:train",
        "https://h/voc:train": "https://h/voc:train",
    }
    assert [without_chains(chain) for chain in chains] == list(chains.values())
