"""Faults that files of users have, in every format that has a reader.

Every subclass of `DetectionSet` must have a row in `WRITERS` with a function that writes its format.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from ohem.data.annotations.findings import Note
from ohem.data.coco import COCODetection
from ohem.data.dataset import DetectionSet, ImageFolder
from ohem.data.sources import open_dataset
from ohem.data.voc import VOCDetection
from ohem.data.yolo import YOLODetection
from ohem.errors import InputError
from ohem.images.orientation import ORIENTATIONS, turn_boxes, turn_pixels, turn_size
from tests.helpers.contracts import check_dataset
from tests.helpers.datasets import save_turned

Box = tuple[float, float, float, float]
HEIGHT, WIDTH = 30, 40


class Thing(NamedTuple):
    """Holds an object: its box is [x1, y1, x2, y2], end exclusive."""

    box: Box
    name: str = "cat"
    ignore: bool = False


class Content(NamedTuple):
    """Holds the size and orientation of an image file, and the content of its annotation."""

    things: Sequence[Thing]
    size: tuple[int, int] | None = (HEIGHT, WIDTH)
    orientation: int = 1


def voc(folder: Path, images: dict[str, Content]) -> str:
    """Writes VOC layout; returns the source."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, content in images.items():
        write_image(folder / "JPEGImages" / f"{stem}.png", content)
        size = "" if content.size is None else "<size><height>{}</height><width>{}</width></size>".format(*content.size)
        objects = "".join(
            f"<object><name>{t.name}</name><difficult>{int(t.ignore)}</difficult><bndbox><xmin>{t.box[0] + 1}</xmin>"
            f"<ymin>{t.box[1] + 1}</ymin><xmax>{t.box[2]}</xmax><ymax>{t.box[3]}</ymax></bndbox></object>"
            for t in content.things
        )
        text = f"<annotation>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(images))
    return f"{folder}:train"


def coco(folder: Path, images: dict[str, Content]) -> str:
    """Writes COCO's format; returns the source."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = sorted({thing.name for content in images.values() for thing in content.things})
    entries, things = [], []
    for number, (stem, content) in enumerate(images.items(), start=1):
        write_image(folder / "images" / f"{stem}.png", content)
        size = {} if content.size is None else dict(zip(("height", "width"), content.size, strict=True))
        entries.append({"id": number, "file_name": f"{stem}.png", **size})
        for thing in content.things:
            x1, y1, x2, y2 = thing.box
            bbox, category = [x1, y1, x2 - x1, y2 - y1], names.index(thing.name) + 1
            one = {"image_id": number, "category_id": category, "bbox": bbox, "iscrowd": int(thing.ignore)}
            things.append({"id": len(things) + 1, **one})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    path = folder / "all.json"
    path.write_text(json.dumps({"images": entries, "annotations": things, "categories": categories}))
    return f"{path}:{folder / 'images'}"


def yolo(folder: Path, images: dict[str, Content]) -> str:
    """Writes YOLO layout, which states no size and ignores no object; returns the source."""
    names = list(dict.fromkeys(thing.name for content in images.values() for thing in content.things))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for stem, content in images.items():
        write_image(folder / "images" / f"{stem}.png", content)
        lines = []
        for thing in content.things:
            x1, y1, x2, y2 = thing.box
            box = [(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
            lines.append(" ".join(map(repr, [names.index(thing.name), *box])))
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(lines))
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"train": "images", "names": names}, allow_unicode=True), encoding="utf-8")
    return f"{path}:train"


def write_image(path: Path, content: Content) -> None:
    rng = np.random.default_rng(0)
    save_turned(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), path, content.orientation)


Write = Callable[[Path, dict[str, Content]], str]
WRITERS: dict[type[DetectionSet], Write] = {VOCDetection: voc, COCODetection: coco, YOLODetection: yolo}
GOOD = Content([Thing((4, 5, 20, 25))])


def test_every_format_is_tested() -> None:
    assert set(WRITERS) == set(DetectionSet.__subclasses__()) - {ImageFolder}  # which has no annotations


@pytest.fixture(params=WRITERS.values(), ids=[kind.__name__ for kind in WRITERS])
def write(request: pytest.FixtureRequest) -> Write:
    writer: Write = request.param
    return writer


@pytest.fixture(params=[voc, coco], ids=["VOC", "COCO"])
def write_sizes(request: pytest.FixtureRequest) -> Write:
    """Returns a writer of a format that states the size of an image, has boxes in pixels, and ignores objects."""
    writer: Write = request.param
    return writer


def read(source: str, **options: object) -> tuple[DetectionSet, list[str]]:
    """Returns the data set and the warnings about it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = open_dataset([source], **options)  # type: ignore[arg-type]
    return data, [str(record.message) for record in said]


def test_good_files_give_no_warning(write: Write, tmp_path: Path) -> None:
    data, said = read(write(tmp_path, {"a": GOOD, "b": Content([])}))
    assert [text for text in said if Note.UNLABELLED.text(1) not in text] == []
    assert len(said) == (write is yolo)
    check_dataset(data)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (Content([Thing((-9, 5, 20, 25))]), Note.CLIPPED),
        (Content([Thing((4, 6, 20, 34))]), Note.CLIPPED),
        (Content([Thing((4, 5, 4, 25)), *GOOD.things]), Note.SKIPPED),
    ],
)
def test_corrections_are_reported_once_with_their_number(
    write: Write, tmp_path: Path, content: Content, kind: Note
) -> None:
    _check_note(write, tmp_path, content, kind)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (Content([Thing((9, 5, 4, 25)), *GOOD.things]), Note.SKIPPED),
        (Content([Thing((-9, 5, 20, 25))], orientation=3), Note.CLIPPED_TURNED),
        (Content(GOOD.things, size=None), Note.SIZE_READ),
        (Content(GOOD.things, size=(0, 0)), Note.SIZE_READ),
        (Content(GOOD.things, size=(WIDTH, HEIGHT), orientation=6), Note.TURNED),
        (Content(GOOD.things, size=(HEIGHT, WIDTH), orientation=6), Note.TURNED_WITH_BOXES),
        (Content(GOOD.things, orientation=3), Note.TURNED_UNKNOWN),
        (Content(GOOD.things, size=None, orientation=8), Note.TURNED_UNKNOWN),
    ],
)
def test_notes_about_sizes_are_reported_once_with_their_number(
    write_sizes: Write, tmp_path: Path, content: Content, kind: Note
) -> None:
    _check_note(write_sizes, tmp_path, content, kind)


def _check_note(write: Write, tmp_path: Path, content: Content, kind: Note) -> None:
    data, said = read(write(tmp_path, {"good": GOOD, "one": content, "two": content}))
    (note,) = [text for text in said if kind.text(2) in text]
    assert note.startswith(str(data.sources[0]))
    assert "in 2 annotations, the first of them" in note
    assert str(tmp_path) in note.partition("the first of them")[2]
    check_dataset(data)


@pytest.mark.parametrize(
    ("things", "message"),
    [
        ([Thing((0.1, 0.2, 0.6, 0.9)), Thing((0.5, 0.5, 0.75, 1.0))], "fractions of the image"),
        ([Thing((35, 5, 60, 25))], "most lies outside"),
        ([Thing((50, 5, 60, 25))], "most lies outside"),
        ([Thing((4, 5, 400, 25))], "most lies outside"),
    ],
)
def test_impossible_content_is_refused_once_for_all_files(
    write_sizes: Write, tmp_path: Path, things: Sequence[Thing], message: str
) -> None:
    if write_sizes is voc and "fractions" in message:  # which count from 1, and so do not lie within 0 and 1 otherwise
        things = [Thing((x1 - 1, y1 - 1, x2, y2)) for (x1, y1, x2, y2), _, _ in things]
    bad = Content(things)
    source = write_sizes(tmp_path, {"a": GOOD, "b": bad, "c": bad, "d": bad, "e": bad, "f": bad, "g": GOOD})
    with pytest.raises(InputError, match=message) as refused:
        read(source)
    assert f"({4 * len(things if write_sizes is coco and 'outside' in message else [1])} more with a fault: " in str(
        refused.value
    )
    assert "\n" not in str(refused.value)


def test_an_image_of_another_size_is_refused(write_sizes: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has a size of 50 x 30 \(width x height\), .*b\.png has 40 x 30: correct"):
        read(write_sizes(tmp_path, {"a": GOOD, "b": Content([], size=(30, 50))}))
    with pytest.raises(InputError, match="30 x 40 when it is upright, and 40 x 30 as it is stored"):
        read(write_sizes(tmp_path, {"a": Content([], size=(50, 50), orientation=5)}))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("stored", [False, True])
def test_pixels_and_boxes_are_those_that_a_viewer_displays(
    write_sizes: Write, tmp_path: Path, orientation: int, stored: bool
) -> None:
    """Checks that the box holds the pixels of the object, in whichever orientation it was annotated."""
    upright = turn_size((HEIGHT, WIDTH), orientation)
    annotated = np.array([[4.0, 5, 20, 25]])
    transposed = upright != (HEIGHT, WIDTH)
    size = (HEIGHT, WIDTH) if stored else upright
    data, _ = read(write_sizes(tmp_path, {"a": Content([Thing(tuple(annotated[0]))], size, orientation)}))
    image, target = data[0]
    pixels = np.asarray(Image.open(data.path(0)))
    assert data.size(0) == image.shape[1:] == upright
    np.testing.assert_array_equal(image.permute(1, 2, 0), turn_pixels(pixels, orientation))
    expected = turn_boxes(annotated, orientation, upright) if stored and transposed else annotated
    assert target["boxes"].tolist() == expected.tolist()
    assert data.as_annotated(0, target["boxes"]).tolist() == annotated.tolist()
    assert data.as_upright(0, annotated).tolist() == target["boxes"].tolist()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_box_of_the_stored_image_turns_with_its_pixels(orientation: int) -> None:
    pixels, upright = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH), turn_size((HEIGHT, WIDTH), orientation)
    x1, y1, x2, y2 = turn_boxes(np.array([[4, 5, 20, 25]]), orientation, upright)[0]
    inside = turn_pixels(pixels, orientation)[y1:y2, x1:x2]
    assert sorted(inside.ravel()) == sorted(pixels[5:25, 4:20].ravel())


@pytest.mark.parametrize("names", [("king", " king "), ("caf\u00e9", "cafe\u0301"), ("red  fox", "red fox")])
def test_names_of_one_appearance_are_one_class(write: Write, tmp_path: Path, names: tuple[str, str]) -> None:
    things = [Thing((4, 5, 20, 25), name) for name in names]
    data, said = read(write(tmp_path, {"a": Content(things)}))
    assert len(data.classes) == 1
    assert data.target(0)["labels"].tolist() == [1, 1]
    assert write is voc or any("class name" in text for text in said)


@pytest.mark.parametrize("name", ["[b]", "[/]", "a:smile:", "$x_1$", "<b>&amp;", "x, y", "猫", "-1", "{0}", "%s"])
def test_names_stay_as_they_are_written(write: Write, tmp_path: Path, name: str) -> None:
    written = name.replace("&amp;", "&amp;amp;").replace("<", "&lt;") if write is voc else name
    data, _ = read(write(tmp_path, {"a": Content([Thing((4, 5, 20, 25), written)])}))
    assert data.classes == (name,)


def test_other_classes_are_skipped_on_request(write: Write, tmp_path: Path) -> None:
    things = [Thing((4, 5, 20, 25), name) for name in ("cat", "dog", "dgo")]
    source = write(tmp_path, {"a": Content(things), "b": Content(things)})
    with pytest.raises(
        InputError, match=r"has 4 objects of other classes than 'dog': .*'dgo' \(did you mean 'dog'\?\)"
    ):
        read(source, classes=["dog"])
    data, said = read(source, classes=[" dog"], skip_others=True)
    assert len(said) == 1
    assert "skipped 4 objects" in said[0]
    assert data.classes == ("dog",)
    assert [data.target(i)["labels"].tolist() for i in range(2)] == [[1], [1]]
    check_dataset(data)


@pytest.mark.parametrize("classes", [["cat", "cat"], ["cat", " cat"], ["cat", ""]])
def test_classes_given_twice_or_empty_are_refused(write: Write, tmp_path: Path, classes: list[str]) -> None:
    with pytest.raises(InputError, match="hold a name twice, or an empty one"):
        read(write(tmp_path, {"a": GOOD}), classes=classes)


def test_objects_that_are_ignored_do_not_count(write_sizes: Write, tmp_path: Path) -> None:
    data, _ = read(write_sizes(tmp_path, {"a": Content([Thing((4, 5, 20, 25), ignore=True)]), "b": Content([])}))
    assert not data.objects()
    assert data.target(0)["ignore"].tolist() == [True]


def test_sources_written_on_windows_get_the_remedy_that_helps() -> None:
    for source in (r"C:\data\VOC:train", r"C:\data\all.json:C:\data\img", r"C:\data\data.yaml:train"):
        with pytest.raises(InputError, match=r"do(es)? not exist"):
            read(source)
    with pytest.raises(InputError, match="has no split: write FOLDER:SPLIT"):
        read(r"C:\data\img")
    with pytest.raises(InputError, match="with / between folders"):
        read(r"C:\data\VOC:train")
