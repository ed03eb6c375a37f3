"""Large files in COCO's format: read into arrays as one object after the other would be, and remembered."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ohem.data import coco_arrays, coco_index, coco_json
from ohem.data.annotations.findings import Findings
from ohem.data.coco import COCODetection
from ohem.data.coco_json import Instances, read_instances
from ohem.errors import InputError
from tests.data.annotations.test_table import plain
from tests.helpers.datasets import annotation, write_coco, write_noise
from tests.training.test_run_folder import DEAD

IMAGES = {"a.jpg": (9, 30, 40), "b.jpg": (2, 20, 10), "c.jpg": (12, 8, 8)}
CATEGORIES = {"dog": 18, "cat": 17, "emu": 90}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_noise(folder / "images", IMAGES)
    turn(folder / "images" / "b.jpg")
    return folder


def turn(image: Path) -> None:
    """Gives the image an EXIF orientation by which the stated size is that of the stored image."""
    from PIL import Image

    with Image.open(image) as opened:
        exif = opened.getexif()
        exif[0x0112] = 6
        opened.save(image, exif=exif)


number = st.sampled_from([-40, -1, -0.5, 0, 0.25, 1, 2.5, 3, 7.75, 12, 30, 45, 1e300])
entries = st.fixed_dictionaries(
    {
        "image_id": st.sampled_from([9, 2, 12]) | st.sampled_from([9, 2, 12, 5]),
        "category_id": st.sampled_from([17, 18, 90]) | st.sampled_from([17, 3]),
        "bbox": st.tuples(number, number, number, number),
    },
    optional={
        "area": st.sampled_from([None, 3, 7.5, 0]) | st.sampled_from([-1, 1e20]),
        "iscrowd": st.sampled_from([0, 1]) | st.sampled_from([True, 2]),
        "ignore": st.sampled_from([0, 1, -1]),
        "id": st.sampled_from([3, 77, None, "x"]),
    },
)


def read(path: Path, folder: Path) -> tuple[Any, ...]:
    """Returns everything that reading gives."""
    findings = Findings()
    try:
        instances = read_instances(path, folder, findings)
        findings.refuse()
    except InputError as error:
        return (str(error),)
    notes = {kind: list(places.items()) for kind, places in findings.notes.items()}
    return flat(instances), notes


def flat(instances: Instances) -> tuple[Any, ...]:
    rest = instances.category_ids, instances.groups, instances.image_ids, instances.names
    return *rest, list(map(plain, instances.annotations)), instances.annotations.names


@given(st.lists(entries, max_size=8))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_are_read_as_one_object_after_the_other(folder: Path, things: list[dict[str, Any]]) -> None:
    path = folder / "instances.json"
    write_coco(path, IMAGES, [], CATEGORIES)
    content = json.loads(path.read_text()) | {"annotations": things}
    path.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        slowly = read(path, folder / "images")
        patch.setattr(coco_arrays, "LARGE", 0)
        assert read(path, folder / "images") == slowly


def test_arrays_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a fault is not read a second time, with notes or without."""
    path = folder / "instances.json"
    things = [
        annotation(9, 17, [2.5, 4, 8, 16.25]),
        annotation(2, 18, [-3, 0, 10, 20]),
        annotation(2, 18, [1, 2, 0, 4]),
    ]
    write_coco(path, IMAGES, things, CATEGORIES)
    monkeypatch.setattr(coco_arrays, "LARGE", 0)
    monkeypatch.setattr(coco_json, "_parse_json", None)
    findings = Findings()
    instances = read_instances(path, folder / "images", findings)
    assert [len(one.names) for one in instances.annotations] == [1, 1, 0]
    assert sorted(kind.name for kind in findings.notes) == ["CLIPPED_TURNED", "SKIPPED", "TURNED_WITH_BOXES"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a data set whose every file counts as large."""
    things = [annotation(9, 17, [2.5, 4, 8, 16.25]), annotation(2, 18, [1, 2, 12, 4])]
    write_coco(tmp_path / "instances.json", IMAGES, things, CATEGORIES)
    write_noise(tmp_path / "images", IMAGES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(coco_arrays, "LARGE", 0)
    return tmp_path


class Opened:
    """Opens the data set, and counts how often the file was parsed and which warnings there were."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        monkeypatch.setattr(coco_index, "read_instances", lambda *given: (calls.append(1), read_instances(*given))[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.data = COCODetection(f"{folder / 'instances.json'}:{folder / 'images'}")
        self.parsed = len(calls)
        self.warned = [str(one.message) for one in caught]
        self.content = [plain(self.data.annotation(i)) for i in range(len(self.data))]


def index_of(folder: Path) -> Path:
    (index,) = (folder / "cache").rglob("*.annotations")
    return index


def test_the_second_time_it_is_remembered(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Opened(data, monkeypatch), Opened(data, monkeypatch)
    assert (first.parsed, second.parsed) == (1, 0)
    assert first.content == second.content
    assert first.data.sources == second.data.sources
    assert first.warned == second.warned
    assert "clipped 1 box" in first.warned[0]


def test_a_change_is_noticed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Opened(data, monkeypatch)
    path, image = data / "instances.json", data / "images" / "a.jpg"
    path.write_text(path.read_text().replace("16.25", "11.25"))
    changed = Opened(data, monkeypatch)
    assert (changed.parsed, changed.data.target(1)["boxes"][0, 3]) == (1, 15.25)
    os.utime(image, ns=(1, 1))
    assert Opened(data, monkeypatch).parsed == 1
    assert Opened(data, monkeypatch).parsed == 0
    image.unlink()
    with pytest.raises(InputError, match=r"has the file_name 'a\.jpg', which is not in"):
        Opened(data, monkeypatch)


def test_a_damaged_index_is_made_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Opened(data, monkeypatch)
    index = index_of(data)
    whole = index.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 12, dtype=int).tolist():
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        again = Opened(data, monkeypatch)
        assert (again.parsed, again.content, index.read_bytes()) == (1, first.content, whole)
    for damaged in (b"", whole[:20], whole[:-1]):
        index.write_bytes(damaged)
        assert Opened(data, monkeypatch).content == first.content


def test_without_a_cache_every_opening_reads_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "cache").write_text("a file, where no folder can be made")
    for _ in range(2):
        assert Opened(data, monkeypatch).parsed == 1


def test_what_a_killed_process_left_is_removed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Opened(data, monkeypatch)
    index = index_of(data)
    left = index.with_name(f".{index.name}.{DEAD}.tmp")
    left.touch()
    index.unlink()
    Opened(data, monkeypatch)
    assert index.exists()
    assert not left.exists()


def test_small_files_are_not_remembered(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_arrays, "LARGE", 10**9)
    Opened(data, monkeypatch)
    assert not (data / "cache").exists()
