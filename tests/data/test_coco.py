"""Reading of files in COCO's format: values, corrections with one warning, refusals in one sentence."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ohem.data import coco_arrays
from ohem.data.coco import COCODetection, is_coco, parse_source
from ohem.errors import InputError
from tests.helpers.contracts import check_dataset
from tests.helpers.datasets import annotation, write_coco, write_noise
from tests.helpers.reference import SHARED, needs_shared

# file name -> id, height, width; not in the order of ids
IMAGES = {"b.jpg": (9, 30, 40), "deep/a.b.png": (4, 20, 10), "c.jpg": (12, 8, 8)}
CATEGORIES = {"dog": 18, "cat": 17, "emu": 90}
CAT = annotation(9, 17, [2.5, 4, 8, 16.25], area=77.5)
DOGS = annotation(9, 18, [0, 0, 40, 30], iscrowd=1)
DOG = annotation(4, 18, [1, 2, 3, 4])


@pytest.fixture(params=["small", "large"], autouse=True)
def size(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes every file count as large, which is read into arrays and remembered, or none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "large":
        monkeypatch.setattr(coco_arrays, "LARGE", 0)
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes three images: one with a cat and a crowd of dogs, one with a dog without an area, one without objects."""
    write_coco(tmp_path / "instances.json", IMAGES, [CAT, DOGS, DOG], CATEGORIES)
    write_noise(tmp_path / "images", IMAGES)
    return tmp_path


def source(folder: Path, name: str = "instances") -> str:
    return f"{folder / name}.json:{folder / 'images'}"


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """Changes the content of the file: `change` edits it in place or returns the new content."""
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    replaced = change(content)
    path.write_text(json.dumps(content if replaced is None else replaced))


def with_boxes(folder: Path, *boxes: list[float]) -> COCODetection:
    write_coco(folder / "instances.json", IMAGES, [annotation(9, 17, box) for box in boxes], CATEGORIES)
    return COCODetection(source(folder))


def test_images_and_targets(folder: Path) -> None:
    data = COCODetection(source(folder))
    check_dataset(data)
    assert data.classes == ("cat", "dog", "emu")
    assert data.ids == ["deep/a.b", "b", "c"]
    assert [data.size(i) for i in range(3)] == [(20, 10), (30, 40), (8, 8)]
    assert data.path(0) == folder / "images/deep/a.b.png"
    dog, both, nothing = (data.target(i) for i in range(3))
    assert dog["boxes"].tolist() == [[1, 2, 4, 6]]
    assert both["boxes"].tolist() == [[2.5, 4, 10.5, 20.25], [0, 0, 40, 30]]
    assert (dog["labels"].tolist(), both["labels"].tolist()) == ([2], [1, 2])
    assert (dog["ignore"].tolist(), both["ignore"].tolist()) == ([False], [False, True])
    assert (dog["area"].tolist(), both["area"].tolist()) == ([12], [77.5, 1200])
    assert [len(nothing[field]) for field in ("boxes", "labels", "ignore", "area")] == [0] * 4


def test_numbers_of_the_file_are_kept(folder: Path) -> None:
    (read,) = COCODetection(source(folder)).sources
    assert read.image_ids == (4, 9, 12)
    assert read.ids == ("deep/a.b", "b", "c")
    assert read.category_ids == (("cat", 17), ("dog", 18), ("emu", 90))
    assert (read.folder, read.name, str(read)) == (folder / "images", "instances", source(folder))


def test_given_classes_fix_the_labels(folder: Path) -> None:
    data = COCODetection(source(folder), classes=["dog", "ant", "cat"])
    assert data.target(1)["labels"].tolist() == [3, 1]
    with pytest.warns(UserWarning, match=r"skipped 2 objects of other classes .*: 'dog' \(did you mean 'dogs'\?\)"):
        data = COCODetection(source(folder), classes=["cat", "dogs"], skip_others=True)
    assert [target["labels"].tolist() for target in map(data.target, range(3))] == [[], [1], []]
    assert data.other_classes == ("dog",)


def test_data_set_can_be_sent_to_a_worker(folder: Path) -> None:
    data = COCODetection(source(folder))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[1][0], data[1][0])
    assert copy.sources == data.sources


def test_without_annotations_as_the_test_server_gives_them(folder: Path) -> None:
    edit(folder, lambda content: content.pop("annotations") and None)
    data = COCODetection(source(folder))
    check_dataset(data)
    assert data.classes == ("cat", "dog", "emu")
    assert sum(len(data.target(i)["labels"]) for i in range(3)) == 0


def test_iscrowd_and_area_may_be_absent(folder: Path) -> None:
    edit(folder, lambda content: [thing.pop("iscrowd") for thing in content["annotations"]] and None)
    edit(folder, lambda content: content["annotations"][0].update(area=None))
    target = COCODetection(source(folder)).target(1)
    assert target["ignore"].tolist() == [False, False]
    assert target["area"].tolist() == [8 * 16.25, 1200]


# Several sources


def test_concatenation(folder: Path) -> None:
    more = {"d.jpg": (9, 12, 14)}
    things = [annotation(9, 1, [1, 1, 5, 5])]
    write_coco(folder / "more.json", more, things, {"ant": 1, "cat": 2})
    write_noise(folder / "images", more)
    data = COCODetection([source(folder), source(folder, "more")])
    check_dataset(data)
    assert data.ids == ["deep/a.b", "b", "c", "d"]
    assert data.classes == ("cat", "dog", "emu", "ant")
    assert data.target(3)["labels"].tolist() == [4]
    assert [read.image_ids for read in data.sources] == [(4, 9, 12), (9,)]
    assert data.sources[1].category_ids == (("ant", 1), ("cat", 2))
    assert data.ids[data.sources[1].indices] == ["d"]


def test_shared_names_get_the_folder_in_front(folder: Path) -> None:
    shutil.copytree(folder / "images", folder / "other")
    data = COCODetection([source(folder), f"{folder / 'instances.json'}:{folder / 'other'}"])
    assert data.ids == [f"{name}/{stem}" for name in ("images", "other") for stem in ("deep/a.b", "b", "c")]


def test_one_image_in_two_sources_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"the image 'b' is in both .*: give only one of them"):
        COCODetection([source(folder), source(folder)])


# Corrections with one warning


@pytest.mark.parametrize(
    ("box", "expected"),
    [([-1, 0, 5, 5], [0, 0, 4, 5]), ([30, 20, 10.9, 11], [30, 20, 40, 30]), ([0.1, 0.2, 0.5, 5.5], None)],
)
def test_one_pixel_over_is_clipped_silently(folder: Path, box: list[float], expected: list[float] | None) -> None:
    expected = expected or [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    assert with_boxes(folder, box).target(1)["boxes"][0].tolist() == pytest.approx(expected)


def test_boxes_outside_are_clipped_with_one_warning(folder: Path) -> None:
    message = r"clipped 2 boxes reaching outside the image, in 2 annotations, .* annotation 1 of .*instances\.json;"
    with pytest.warns(UserWarning, match=message) as seen:
        data = with_boxes(folder, [-5, 4, 10, 20], [1, 1, 10, 20], [3, 4, 50, 30])
    assert len(seen) == 1
    assert data.target(1)["boxes"].tolist() == [[0, 4, 5, 24], [1, 1, 11, 21], [3, 4, 40, 30]]
    assert data.target(1)["area"].tolist() == [100, 200, 37 * 26]


@pytest.mark.parametrize("box", [[3, 5, 0, 20], [3, 5, 20, 0], [3, 5, -2, 20], [20, 5, 1e-9, 3]])
def test_boxes_without_area_are_skipped_with_one_warning(folder: Path, box: list[float]) -> None:
    message = r"skipped 1 box inverted or without area, in 1 annotation, .* annotation 1 of .*instances\.json;"
    with pytest.warns(UserWarning, match=message) as seen:
        data = with_boxes(folder, box, [3, 5, 10, 20])
    assert len(seen) == 1
    assert data.target(1)["boxes"].tolist() == [[3, 5, 13, 25]]
    assert len(data.target(1)["labels"]) == len(data.target(1)["area"]) == 1


# Refusals in one sentence


def refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        COCODetection(text)
    assert "\n" not in str(error.value)


def test_sources(folder: Path) -> None:
    assert parse_source("a:b/c.json:d/e") == (Path("a:b/c.json"), Path("d/e"))
    assert is_coco("a.json:b")
    assert is_coco("A.JSON")
    assert not is_coco("VOC2007:trainval")
    assert not is_coco("")
    for text in ("a.json", "a.json:", ":a.json"):
        refused(text, r"has no folder of images: write ANNOTATIONS\.json:IMAGES")
    refused(f"{folder}/absent.json:{folder}", r"the annotations .*absent\.json do not exist: correct the source")
    refused(f"{folder}/instances.json:{folder}/absent", r"the folder .*absent does not exist: correct the source")
    with pytest.raises(InputError, match=r"the list of sources is empty: give at least one ANNOTATIONS\.json:IMAGES"):
        COCODetection([])


@pytest.mark.parametrize("text", ['{"images": [', "", "[" * 100_000, b"\xff\xfe\0"])
def test_malformed_json(folder: Path, text: str | bytes) -> None:
    (folder / "instances.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(source(folder), r"instances\.json is not well-formed JSON")


def put(*path: Any) -> Callable[[Any], None]:
    """Returns a change that sets the field at `path[:-1]` to `path[-1]`, or removes it where that is `...`."""

    def change(content: Any) -> None:
        *way, key, value = path
        for step in way:
            content = content[step]
        if value is ...:
            del content[key]
        else:
            content[key] = value

    return change


FIRST = ("annotations", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [1, 2], r"instances\.json is not in COCO's format: write an object"),
        (put("images", ...), r"instances\.json has no images: add it"),
        (put("images", []), r"instances\.json has no images: list them"),
        (put("images", {}), r"instances\.json has images that are not a list"),
        (put("images", 1, 7), r"entry 2 of the images of .*instances\.json is no object with fields"),
        (put("images", 1, "id", ...), r"entry 2 of the images of .*instances\.json has no id: add it"),
        (put("images", 1, "id", "x"), r"image 'x' of .*instances\.json has the id 'x': write a whole number"),
        (put("images", 1, "id", True), "has the id True: write a whole number"),
        (put("images", 1, "id", 9), r"instances\.json lists the image 9 twice: remove one"),
        (put("images", 1, "file_name", ...), r"image 4 of .*instances\.json has no file_name: add it"),
        (put("images", 1, "file_name", " "), r"image 4 of .*instances\.json has the file_name ' ': write a name"),
        (put("images", 1, "file_name", "b.png"), "the images 9 and 4 of .* have the file_name 'b' except for the"),
        (put("images", 1, "file_name", "x.jpg"), "image 4 of .* the file_name 'x.jpg', which is not in .*images: put"),
        (put("images", 1, "file_name", "."), r"image 4 of .* has the file_name '\.', which is not in"),
        (put("images", 0, "width", 400), r"image 9 of .* a size of 400 x 30 \(width x height\), .*b\.jpg has 40 x 30"),
        (put("images", 0, "height", 40.5), r"image 9 of .* has the height 40\.5: write a whole number"),
        (put("categories", ...), r"instances\.json has no categories: add it"),
        (put("categories", 0, "name", ...), r"category 18 of .*instances\.json has no name: add it"),
        (put("categories", 0, "name", 3), r"category 18 of .* has the name 3: write a name"),
        (put("categories", 0, "name", "cat"), r"lists the category 17 or its name 'cat' twice: remove one"),
        (put("categories", 0, "id", 17), r"lists the category 17 or its name 'cat' twice: remove one"),
        (put("annotations", None), r"instances\.json has annotations that are not a list"),
        (put(*FIRST, "image_id", ...), r"annotation 1 of .*instances\.json has no image_id: add it"),
        (put(*FIRST, "image_id", 5), "annotation 1 of .* has the image_id 5, which no image has: correct it"),
        (put(*FIRST, "category_id", 5), "annotation 1 of .* has the category_id 5, which no category has: add it"),
        (put(*FIRST, "category_id", [1]), r"annotation 1 of .* has the category_id \[1\]: write a whole number"),
        (put(*FIRST, "bbox", ...), r"annotation 1 of .*instances\.json has no bbox: add it"),
        (put(*FIRST, "bbox", [1, 2, 3]), r"annotation 1 of .* has the bbox \[1, 2, 3\]: write \[x, y, width, height\]"),
        (put(*FIRST, "bbox", [1, 2, 3, "4"]), r"has the bbox \[1, 2, 3, '4'\]: write \[x"),
        (put(*FIRST, "bbox", [1, 2, 3, float("nan")]), r"has the bbox \[1, 2, 3, nan\]: write \[x"),
        (put(*FIRST, "bbox", [1, 2, 3, 10**400]), r"has the bbox \[1, 2, 3, 10+\.\.\.0+\]: write \[x"),
        (put(*FIRST, "bbox", None), r"has the bbox None: write \[x"),
        (put(*FIRST, "iscrowd", 2), "annotation 1 of .* has the iscrowd 2: write 0 or 1"),
        (put(*FIRST, "iscrowd", []), r"annotation 1 of .* has the iscrowd \[\]: write 0 or 1"),
        (put(*FIRST, "area", -1), "annotation 1 of .* has the area -1: write it in square pixels, or leave it out"),
        (put(*FIRST, "area", "77"), "annotation 1 of .* has the area '77': write it in square pixels"),
    ],
)
def test_bad_fields(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    edit(folder, change)
    refused(source(folder), message)


def test_a_number_of_too_many_digits_is_malformed(folder: Path) -> None:
    path = folder / "instances.json"
    path.write_text(path.read_text().replace("77.5", "7" * 5000))
    refused(source(folder), "is not well-formed JSON")


def test_damaged_image(folder: Path) -> None:
    (folder / "images/b.jpg").write_bytes(b"GIF")
    refused(source(folder), r"b\.jpg is cut short or not an image")


# Real data


@needs_shared
@pytest.mark.parametrize(("split", "objects", "empty"), [("train", 470, 1), ("val", 382, 2)])
def test_tiny_coco_loads_clean(split: str, objects: int, empty: int) -> None:
    root = SHARED / "data/tiny_coco"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = COCODetection(f"{root}/annotations/instances_{split}2017.json:{root}/{split}2017")
    targets = [data.target(i) for i in range(len(data))]
    assert (len(data), len(data.classes)) == (50, 80)
    assert (data.classes[0], data.classes[-1], data.sources[0].category_ids[-1]) == (
        "person",
        "toothbrush",
        ("toothbrush", 90),
    )
    assert sum(len(target["labels"]) for target in targets) == objects
    assert sum(int(target["ignore"].sum()) for target in targets) == 5
    assert sum(not len(target["labels"]) for target in targets) == empty


# Fields that would be left unread, or read differently from COCO's program


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_other_encodings(folder: Path, encoding: str) -> None:
    path = folder / "instances.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert len(COCODetection(source(folder))) == 3


def test_a_duplicate_key_is_refused(folder: Path, size: str) -> None:
    """In a large file the last value counts, as it does for pycocotools."""
    path = folder / "instances.json"
    path.write_text(path.read_text().replace('"bbox": ', '"bbox": [1, 1, 5, 5], "bbox": ', 1))
    if size == "large":
        assert COCODetection(source(folder)).target(1)["boxes"][0].tolist() == [2.5, 4, 10.5, 20.25]
    else:
        refused(source(folder), "one object has the key 'bbox' twice")


def test_objects_that_coco_s_program_ignores(folder: Path) -> None:
    edit(folder, lambda content: content["annotations"][0].update(ignore=1))
    with pytest.warns(UserWarning, match="ignored 1 object whose field ignore is 1"):
        data = COCODetection(source(folder))
    assert data.target(1)["ignore"].tolist() == [True, True]
    edit(folder, lambda content: content["annotations"][0].update(ignore="no"))
    refused(source(folder), "has the ignore 'no': write 0 or 1")


def test_file_names_written_on_windows(folder: Path) -> None:
    edit(
        folder,
        lambda content: [i.update(file_name=i["file_name"].replace("/", "\\")) for i in content["images"]] and None,
    )
    data = COCODetection(source(folder))
    assert data.ids[0] == "deep/a.b"
    check_dataset(data)


@pytest.mark.parametrize("group", ["animals", "background"])
def test_a_category_that_only_groups_others_is_no_class(folder: Path, group: str) -> None:
    def add(content: dict) -> None:
        content["categories"].insert(0, {"id": 0, "name": group, "supercategory": "none"})
        for category in content["categories"][1:]:
            category["supercategory"] = group if group == "animals" else "none"

    edit(folder, add)
    with pytest.warns(UserWarning, match=f"left out 1 category without an object that only groups .* '{group}'; name"):
        assert COCODetection(source(folder)).classes == ("cat", "dog", "emu")
    assert COCODetection(source(folder), classes=[group, "cat", "dog"]).classes == (group, "cat", "dog")
    edit(folder, lambda content: content["annotations"][0].update(category_id=0))
    assert group in COCODetection(source(folder)).classes


@pytest.mark.parametrize("name", ["\ud800bad", "a\x1b[31m", "a\0b"])
def test_names_that_no_terminal_or_file_can_hold(folder: Path, name: str) -> None:
    edit(folder, lambda content: content["categories"][0].update(name=name))
    refused(source(folder), r"category 18 of .* has the name .*: write a name")
