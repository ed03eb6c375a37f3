"""Data sets at addresses and in archives: the same as on the disk, whatever the server does on the way."""

import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch

from ohem.data.dataset import DetectionSet, ImageFolder
from ohem.data.sources import open_dataset
from ohem.errors import InputError
from ohem.insight.suspects.writers import write_coco, write_voc, write_yolo
from ohem.io import remote
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo, training
from tests.io.http_server import Server, serving

VOC, COCO, YOLO = "{0}/voc:train", "{0}/coco/train.json:{0}/coco/images", "{0}/yolo/data.yaml:train"
PICTURES = [f"/voc/JPEGImages/{stem}.png" for stem in "abcdef"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the toy data in every format. Tests only read them."""
    place = tmp_path_factory.mktemp("served")
    make_toy(place / "voc")
    make_toy_coco(place / "coco")
    make_toy_yolo(place / "yolo")
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets an empty cache of the user, short waits, and no proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", remote.OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))
    return tmp_path / "cache"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as state:
        yield state


def opened(source: str) -> DetectionSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the one empty label file
        return open_dataset([source])


def check_equal(data: DetectionSet, local: DetectionSet) -> None:
    assert (data.classes, data.ids, len(data)) == (local.classes, local.ids, len(local))
    for index in range(len(local)):
        (image, target), (other, expected) = data[index], local[index]
        assert torch.equal(image, other)
        assert data.size(index) == local.size(index)
        assert target.keys() == expected.keys()
        assert all(torch.equal(target[key], expected[key]) for key in expected)


def refused(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        opened(source)
    assert "\n" not in str(error.value)


def temporary(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.suffix in (".tmp", ".lock")]


@pytest.mark.parametrize("source", [VOC, COCO, YOLO, "{0}/yolo/data.yaml:val"])
def test_remote_data_equal_local_data(source: str, folder: Path, server: Server, cache: Path) -> None:
    local = opened(source.format(folder))
    check_equal(opened(source.format(server.address)), local)
    assert server.downloads()
    assert not temporary(cache)
    check_equal(opened(source.format(server.address)), local)
    assert server.downloads() == []


@pytest.mark.parametrize("source", [VOC, COCO, YOLO, "{0}/yolo/data.yaml:val"])
def test_object_stores(source: str, folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/bucket/", recursive=True)
    try:
        check_equal(opened(source.format("memory://bucket")), opened(source.format(folder)))
        store.rm("/bucket/voc/JPEGImages/c.png")
        refused(VOC.format("memory://bucket"), "memory/bucket/voc/JPEGImages has no image of the id 'c'")
    finally:
        store.rm("/bucket", recursive=True)


@pytest.mark.parametrize("fault", ["slow", 503, 429, "reset", "truncated"])
def test_one_failing_answer_is_no_failure(fault: int | str, folder: Path, server: Server, cache: Path) -> None:
    server.faults[PICTURES[1]] = [fault] * 2  # of the size, and of the content
    check_equal(opened(VOC.format(server.address)), opened(VOC.format(folder)))
    assert not temporary(cache)


def test_a_signal_ends_transfers_that_are_on_their_way(folder: Path, server: Server, cache: Path) -> None:
    """Else the command would wait for their end, which may be hours. What is complete is kept."""
    server.faults[PICTURES[1]] = ["endless", "always"]
    main, handler = threading.main_thread().ident or 0, signal.signal(signal.SIGINT, signal.default_int_handler)
    server.while_endless = partial(signal.pthread_kill, main, signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            opened(VOC.format(server.address))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not temporary(cache)
    assert not list(cache.rglob("b.png"))
    server.faults.clear()
    check_equal(opened(VOC.format(server.address)), opened(VOC.format(folder)))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "503 Service Unavailable, after 3 attempts"),
        ("reset", "after 3 attempts"),
        ("truncated", "after 3 attempts"),
        (403, r"403 Forbidden\)"),
    ],
)
def test_a_server_that_always_fails(fault: int | str, reason: str, server: Server, cache: Path) -> None:
    server.faults[PICTURES[1]] = [fault, "always"]
    refused(VOC.format(server.address), rf"{server.address}{PICTURES[1]} cannot be read \(.*{reason}.*: check")
    assert not temporary(cache)
    assert not list(cache.rglob("b.png"))
    server.faults.clear()
    server.requests.clear()
    opened(VOC.format(server.address))  # only what is missing is fetched
    assert PICTURES[1] in server.downloads()


def test_no_answer_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.05)
    server.faults["/voc/ImageSets/Main/train.txt"] = ["slow", "always"]
    refused(VOC.format(server.address), r"train.txt cannot be read \(no answer within 0.05 seconds, after 3 attempts\)")


def test_no_server() -> None:
    refused("http://127.0.0.1:9/voc:train", r"http://127.0.0.1:9/voc/ImageSets/Main/train.txt cannot be read \(.*3 att")


@pytest.mark.parametrize("source", [VOC, COCO])
def test_missing_picture(source: str, server: Server) -> None:
    picture = (PICTURES[0] if source == VOC else "/coco/images/a.png").replace("a.png", "c.png")
    server.faults[picture] = [404, "always"]
    refused(source.format(server.address), f"{server.address}{picture} does not exist: put it there")


def test_pictures_of_a_server_that_does_not_list_are_jpeg(folder: Path, server: Server) -> None:
    server.lists = False
    refused(VOC.format(server.address), "voc/JPEGImages/a.jpg does not exist, nor 5 other files")
    refused(f"{server.address}/yolo/data.yaml:val", "images/val cannot be read")
    check_equal(opened(YOLO.format(server.address)), opened(YOLO.format(folder)))  # a list names its images


def test_changed_files_are_fetched_again(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder / "voc", tmp_path / "copy" / "voc")).parent
    with serving(place) as server:
        source = VOC.format(server.address)
        data = opened(source)
        server.downloads()
        shutil.copyfile(place / "voc/JPEGImages/g.png", place / "voc/JPEGImages/b.png")  # of another time
        data.path(2).write_bytes(b"edited")
        (place / "voc/JPEGImages/a.png").rename(place / "voc/JPEGImages/a.PNG")
        check_equal(opened(source), opened(VOC.format(place)))
        assert server.downloads() == [f"/voc/JPEGImages/{n}" for n in ("a.PNG", "b.png", "c.png")]


def test_offline_the_copies_are_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (VOC, "{0}/yolo/data.yaml:val"):
        data = opened(source.format(server.address))
        monkeypatch.setenv(remote.OFFLINE, "1")
        server.requests.clear()
        check_equal(opened(source.format(server.address)), data)
        assert not server.requests
        data.path(0).unlink()
        with pytest.raises(InputError):
            opened(source.format(server.address))
        monkeypatch.delenv(remote.OFFLINE)


@pytest.mark.parametrize(("source", "write"), [(VOC, write_voc), (COCO, write_coco), (YOLO, write_yolo)])
def test_corrected_annotations_of_remote_data(
    source: str, write: Callable[..., str], folder: Path, server: Server, tmp_path: Path
) -> None:
    data = opened(source.format(server.address))
    check_equal(opened(write(data, data.sources[0], {}, tmp_path / "corrected")), opened(source.format(folder)))


def test_names_with_special_characters(tmp_path: Path) -> None:
    names = ["a b", "50%", "ä#?&", "x%20y", "12:30"]
    make_toy(tmp_path / "my data", {"train": names})
    with serving(tmp_path) as server:
        check_equal(opened(f"{server.address}/my data:train"), opened(f"{tmp_path}/my data:train"))


def test_images_without_an_object(folder: Path, server: Server) -> None:
    check_equal(ImageFolder(f"{server.address}/yolo/images"), ImageFolder(f"{folder}/yolo/images"))
    with pytest.raises(InputError, match="nothing does not exist"):
        ImageFolder(f"{server.address}/nothing")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://host/a/../../b:train", "leads out of its host"),
        ("https://host/%2e%2e/b:train", "the part '..'"),
        ("nothing://host/b:train", "begins with nothing://, which is unknown"),
        ("s3://bucket/voc:train", "needs s3fs: pip install s3fs"),
        ("https://host/voc", "has no split"),
    ],
)
def test_wrong_addresses(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(source, message)


def test_a_training_on_remote_data_is_that_on_local_data(data: Path, server: Server, tmp_path: Path) -> None:
    shutil.copytree(data / "Proposals", tmp_path / "Proposals")
    with serving(data) as state:
        options = ["--proposals.folder", tmp_path / "Proposals"]
        results = []
        for name, place in (("local", str(data)), ("remote", state.address)):
            done = ohem("train", tmp_path / name, *training(place, test=None), *options)  # type: ignore[arg-type]
            assert done.code == 0, done.err
            results.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=False)["model"])
        assert all(torch.equal(results[0][key], value) for key, value in results[1].items())
        state.faults["/JPEGImages/c.png"] = [500, "always"]
        assert "c.png cannot be read (500" in sentence(
            ohem("train", tmp_path / "other", *training(state.address, test=None))  # type: ignore[arg-type]
        )
