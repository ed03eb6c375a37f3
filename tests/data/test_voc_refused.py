"""VOC folders with defects: each is refused in one sentence, or counted in one warning, and nothing is left unread."""

import shutil
from pathlib import Path

import pytest

from ohem.data.voc import VOCDetection, parse_source
from ohem.errors import InputError
from tests.data.conftest import CAT, edit, refused
from tests.helpers.datasets import make_voc


def test_sources(folder: Path) -> None:
    assert parse_source("C:/data/VOC:a.b") == (Path("C:/data/VOC"), "a.b")
    for source in ("VOC", "VOC:", ":test", ""):
        refused(source, r"has no split: write FOLDER:SPLIT")
    refused(f"{folder}/absent:test", r"VOC/absent does not exist: correct the source")
    refused(f"{folder}:val", r"Main/val\.txt does not exist: choose among test, train$")
    with pytest.raises(InputError, match="the list of sources is empty"):
        VOCDetection([])
    shutil.rmtree(folder / "ImageSets")
    refused(folder, r"test\.txt does not exist: create it")


def test_splits(folder: Path) -> None:
    split = folder / "ImageSets/Main/test.txt"
    split.write_text("\n \n")
    refused(folder, r"test\.txt is empty: write one image id in each line")
    split.write_text("a\nb\n\na 1\n")
    refused(folder, r"test\.txt lists 'a' twice, in lines 1 and 4: remove one")
    split.write_bytes(b"\xff\xfea\0")
    refused(folder, r"test\.txt cannot be read .*: save it as UTF-8")


def test_missing_files(folder: Path) -> None:
    (folder / "Annotations/a.xml").unlink()
    refused(folder, r"Annotations/a\.xml does not exist: add it, or remove its id")
    (folder / "JPEGImages/a.png").unlink()
    refused(folder, r"JPEGImages has no image of the id 'a' in .*test\.txt: add a\.jpg, or remove the id")
    shutil.rmtree(folder / "JPEGImages")
    refused(folder, r"JPEGImages does not exist: put the images there")


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><size>", "is not well-formed XML"),
        ("", "is not well-formed XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not well-formed XML"),
        (BOMB, "defines a document type or entities"),
        ("<!DOCTYPE annotation><annotation/>", "defines a document type or entities"),
    ],
)
def test_bad_xml(folder: Path, text: str, message: str) -> None:
    (folder / "Annotations/a.xml").write_text(text)
    refused(folder, rf"a\.xml {message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<width>40<", "<width>wide<", r"<width>wide</width> in the <size> of .*a\.xml is not a number"),
        ("<width>40<", "<width>30<", r"a\.xml has a size of 30 x 30 \(width x height\), .*a\.png has 40 x 30"),
        ("<name>cat</name>", "", r"object 1 of .*a\.xml has no <name>: write its class"),
        ("<name>cat</name>", "<name> </name>", r"object 1 of .*a\.xml has no <name>"),
        ("<difficult>1<", "<difficult>hard<", r"object 2 of .*a\.xml has <difficult>hard</difficult>: write 0 or 1"),
        ("bndbox>", "box>", "not well-formed"),
        ("<ymax>30</ymax>", "", r"<ymax> is missing in the <bndbox> of object 2 of .*a\.xml: add it"),
        ("<xmin>3<", "<xmin>three<", r"<xmin>three</xmin> in the <bndbox> of object 1 of .*a\.xml is not a number"),
        ("<xmin>3<", "<xmin>nan<", r"<xmin>nan</xmin> .* is not a number"),
        ("<xmin>3<", "<xmin>-inf<", r"<xmin>-inf</xmin> .* is not a number"),
    ],
)
def test_bad_fields(folder: Path, old: str, new: str, message: str) -> None:
    edit(folder, old, new)
    refused(folder, message)


def test_object_without_box(folder: Path) -> None:
    edit(folder, "<bndbox>", "<box>")
    edit(folder, "</bndbox>", "</box>")
    refused(folder, r"object 1 of .*a\.xml has no <bndbox>: add one")


def test_annotations_may_be_missing_where_that_is_allowed(folder: Path) -> None:
    assert VOCDetection(f"{folder}:train", annotated=False).annotated
    (folder / "Annotations" / "b.xml").unlink()
    with pytest.raises(InputError, match=r"b\.xml does not exist"):
        VOCDetection(f"{folder}:train")
    dataset = VOCDetection(f"{folder}:train", annotated=False)
    assert not dataset.annotated
    assert dataset.size(1) == (30, 40)
    assert len(dataset.target(0)["boxes"]) == 2
    assert dataset.target(1)["boxes"].shape == (0, 4)
    (folder / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(InputError, match="well-formed"):
        VOCDetection(f"{folder}:train", annotated=False)


def test_damaged_images(folder: Path) -> None:
    """Checks that a damaged header is noticed on construction, and damage behind it when the image is read."""
    path = folder / "JPEGImages/a.png"
    path.write_bytes(path.read_bytes()[:1000])
    dataset = VOCDetection(f"{folder}:test")
    with pytest.raises(InputError, match=r"a\.png is cut short"):
        dataset.image(0)
    path.write_bytes(b"GIF")
    refused(folder, r"a\.png is cut short or not an image")


# Fields that would be left unread


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>", "object 1 of .* has more than one <bndbox>"),
        ("<name>cat</name>", "<name>cat</name><name>dog</name>", "object 1 of .* has more than one <name>"),
        ("<difficult>0", "<difficult>1</difficult><difficult>0", "object 1 of .* has more than one <difficult>"),
        ("<xmin>3", "<xmin>9</xmin><xmin>3", "the <bndbox> of object 1 of .* has more than one <xmin>"),
        ("</size>", "</size><size/>", r"a\.xml has more than one <size>"),
        ("<width>40", "<width>4</width><width>40", "the <size> of .* has more than one <width>"),
        ("<xmin>3</xmin>", "<Xmin>3</Xmin>", "has <Xmin>, which VOC writes <xmin>"),
        ("<object>", "</annotation>", "not well-formed"),
    ],
)
def test_duplicate_or_misplaced_fields_are_refused(folder: Path, old: str, new: str, message: str) -> None:
    edit(folder, old, new)
    refused(folder, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (("<object>", "</object>"), ("<objects><object>", "</object></objects>"), "an <object> within another element"),
        (("<object>", "</object>"), ("<Object>", "</Object>"), "has <Object>, which VOC writes <object>"),
        (("<annotation>", "</annotation>"), ("<annotations>", "</annotations>"), "begins with <annotations>"),
        (("<annotation>", "</annotation>"), ("<annotation xmlns='x'>", "</annotation>"), "VOC writes <annotation>"),
    ],
)
def test_objects_that_would_be_left_unread(
    folder: Path, old: tuple[str, str], new: tuple[str, str], message: str
) -> None:
    path = folder / "Annotations/a.xml"
    text = path.read_text()
    for one, other in zip(old, new, strict=True):
        text = text.replace(one, other)
    path.write_text(text)
    refused(folder, message)


@pytest.mark.parametrize("tag", ["objectx", "thing"])
def test_boxes_in_other_elements_are_refused(folder: Path, tag: str) -> None:
    path = folder / "Annotations/a.xml"
    path.write_text(path.read_text().replace("object>", f"{tag}>"))
    refused(folder, rf"a\.xml has a <bndbox> in <{tag}>, where it is not read: put it into an <object>")


def test_probable_slips_are_counted(folder: Path) -> None:
    edit(folder, "<difficult>0</difficult>", "<dificult>0</dificult><pose>Left</pose><attributes/>")
    with pytest.warns(UserWarning, match=r"did not read 1 element whose name is similar .* first of them .*a\.xml"):
        VOCDetection(f"{folder}:test")


@pytest.mark.parametrize("line", ["a.png", "JPEGImages/a.png", r"JPEGImages\a.png", "a.png 1", "a  -1", " a\t"])
def test_lines_of_a_split_may_name_files(folder: Path, line: str) -> None:
    (folder / "ImageSets/Main/test.txt").write_text(f"{line}\n")
    assert VOCDetection(f"{folder}:test").ids == ["a"]


def test_last_number_of_a_line_is_a_flag_only_if_the_line_is_no_id(tmp_path: Path) -> None:
    names = ["shot", "shot 1", "shot 1.png", "x 0"]
    make_voc(tmp_path, {name: (30, 40, [CAT]) for name in names}, {"test": ["shot 1", "x 0", "shot -1"]})
    assert VOCDetection(f"{tmp_path}:test").ids == ["shot 1", "x 0", "shot"]
    (tmp_path / "ImageSets/Main/test.txt").write_text("shot 1.png\nshot 1\n")
    assert VOCDetection(f"{tmp_path}:test").ids == ["shot 1.png", "shot 1"]


def test_images_in_subfolders_are_not_used(folder: Path) -> None:
    (folder / "ImageSets/Main/test.txt").write_text("other/a\n")
    refused(folder, r"no image of the id 'other/a'.*: add other/a\.jpg, or remove the id; images in folders below it")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8"])
def test_annotations_in_another_encoding(folder: Path, encoding: str) -> None:
    path = folder / "Annotations/a.xml"
    text = path.read_text().replace("cat", "b\u00e4r")
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding))
    assert VOCDetection(f"{folder}:test").classes == ("b\u00e4r", "dog")
    if encoding == "latin-1":
        path.write_bytes(text.encode(encoding))
        refused(
            folder, r"a\.xml is not well-formed XML .*it is not in UTF-8, so save it in that, or declare its encoding"
        )
        path.write_bytes(f'<?xml version="1.0" encoding="gbk"?>{text}'.encode("gbk", "replace"))
        refused(folder, r"a\.xml is not well-formed XML .*: save it in UTF-8 \(it declares the encoding gbk\)")
