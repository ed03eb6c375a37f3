"""VOC folders are read exactly, and every defect is corrected with one warning or named in one sentence."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ohem.data.voc import VOCDetection, parse_source
from ohem.errors import InputError
from tests.helpers.contracts import check_dataset
from tests.helpers.datasets import make_voc
from tests.helpers.reference import SHARED, needs_shared

CAT = ("cat", 3, 5, 10, 20, 0)
DOG = ("dog", 1, 1, 40, 30, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images 30 high and 40 wide: `a` with a cat and a difficult dog, `b` with nothing."""
    images = {"a": (30, 40, [CAT, DOG]), "b": (30, 40, [])}
    return make_voc(tmp_path / "VOC", images, {"train": ["a", "b"], "test": ["a"]})


def edit(folder: Path, old: str, new: str) -> None:
    """Replace text, which must be there, in the annotation of `a`."""
    path = folder / "Annotations" / "a.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def with_box(folder: Path, *boxes: tuple[float, float, float, float]) -> VOCDetection:
    make_voc(folder, {"a": (30, 40, [("cat", *box, 0) for box in boxes])}, {})
    return VOCDetection(f"{folder}:test")


def test_images_and_targets(folder: Path) -> None:
    dataset = VOCDetection(f"{folder}:train")
    check_dataset(dataset)
    assert len(dataset) == 2
    assert dataset.classes == ("cat", "dog")
    assert dataset.ids == ["a", "b"]
    assert dataset.size(0) == (30, 40)
    assert dataset.path(0) == folder / "JPEGImages" / "a.png"
    image, target = dataset[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(Image.open(dataset.path(0))))
    assert target["boxes"].tolist() == [[2, 4, 10, 20], [0, 0, 40, 30]]
    assert target["labels"].tolist() == [1, 2]
    assert target["ignore"].tolist() == [False, True]


@pytest.mark.parametrize("index", [0, 1])
def test_types_hold_without_objects_too(folder: Path, index: int) -> None:
    target = VOCDetection(f"{folder}:train").target(index)
    count = len(target["labels"])
    assert count == (2, 0)[index]
    assert (target["boxes"].shape, target["boxes"].dtype) == ((count, 4), torch.float32)
    assert (target["labels"].shape, target["labels"].dtype) == ((count,), torch.int64)
    assert (target["ignore"].shape, target["ignore"].dtype) == ((count,), torch.bool)


def test_changing_a_target_leaves_the_data_set_alone(folder: Path) -> None:
    dataset = VOCDetection(f"{folder}:train")
    dataset.target(0)["boxes"].zero_()
    assert dataset.target(0)["boxes"].sum() > 0


def test_it_can_be_sent_to_a_worker(folder: Path) -> None:
    dataset = VOCDetection(f"{folder}:train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0][0], dataset[0][0])
    assert copy.ids == dataset.ids


def test_given_classes_fix_the_labels(folder: Path) -> None:
    dataset = VOCDetection(f"{folder}:train", classes=["emu", "dog", "cat"])
    assert dataset.classes == ("emu", "dog", "cat")
    assert dataset.target(0)["labels"].tolist() == [3, 2]
    message = r"1 object of other classes than 'cat', 'dogs': 'dog' \(did you mean 'dogs'\?\); .*a\.xml"
    with pytest.raises(InputError, match=rf"train has {message}: correct the names"):
        VOCDetection(f"{folder}:train", classes=["cat", "dogs"])
    with pytest.warns(UserWarning, match=f"train: skipped {message}"):
        dataset = VOCDetection(f"{folder}:train", classes=["cat", "dogs"], skip_others=True)
    assert dataset.target(0)["labels"].tolist() == [1]
    assert dataset.target(0)["boxes"].tolist() == [[2, 4, 10, 20]]
    with pytest.raises(InputError, match="hold a name twice"):
        VOCDetection(f"{folder}:train", classes=["cat", "dog", "cat"])


def test_parts_of_an_object_are_not_objects(folder: Path) -> None:
    edit(folder, "</object>", "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>")
    assert VOCDetection(f"{folder}:train").classes == ("cat", "dog")


def test_difficult_may_be_absent(folder: Path) -> None:
    edit(folder, "<difficult>1</difficult>", "")
    assert VOCDetection(f"{folder}:train").target(0)["ignore"].tolist() == [False, False]


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".bmp"])
def test_other_suffixes(tmp_path: Path, suffix: str) -> None:
    make_voc(tmp_path, {"a.b": (30, 40, [CAT])}, {"test": ["a.b"]}, suffix)
    assert VOCDetection(f"{tmp_path}:test").path(0).name == f"a.b{suffix}"


def test_two_images_of_an_id_are_refused(folder: Path) -> None:
    make_voc(folder, {"a": (30, 40, [CAT])}, {}, suffix=".jpg")
    refused(folder, r"JPEGImages has two images of the id 'a', a\.jpg and a\.png: remove or rename one of them")
    (folder / "ImageSets/Main/test.txt").write_text("b\n")
    assert VOCDetection(f"{folder}:test").ids == ["b"]


def test_split_with_flags_and_blank_lines(folder: Path) -> None:
    (folder / "ImageSets/Main/cat_train.txt").write_text("\ufeffb -1\n\na  1\r\n\n", encoding="utf-8")
    assert VOCDetection(f"{folder}:cat_train").ids == ["b", "a"]


def test_ids_may_hold_blanks(tmp_path: Path) -> None:
    make_voc(tmp_path, {"image (1)": (30, 40, [CAT])}, {"test": ["image (1) 1"]})
    assert VOCDetection(f"{tmp_path}:test").ids == ["image (1)"]


# --- several sources


def test_concatenation(folder: Path, tmp_path: Path) -> None:
    other = make_voc(tmp_path / "other", {"c": (20, 10, [("ant", 2, 2, 5, 5, 0)])}, {"train": ["c"]})
    dataset = VOCDetection([f"{folder}:train", f"{other}:train"])
    check_dataset(dataset)
    assert dataset.ids == ["a", "b", "c"]
    assert dataset.classes == ("ant", "cat", "dog")
    assert dataset.target(2)["boxes"].tolist() == [[1, 1, 5, 5]]
    first, second = dataset.sources
    assert (first.folder, first.name, first.ids) == (folder, "train", ("a", "b"))
    assert (second.folder, second.name, second.ids) == (other, "train", ("c",))
    assert dataset.ids[first.indices] == ["a", "b"]
    assert dataset.ids[second.indices] == ["c"]


def test_shared_stems_get_the_folder_in_front(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other / "VOC12")
    shutil.copytree(folder, other / "VOC")
    dataset = VOCDetection([f"{folder}:train", f"{other / 'VOC12'}:test"])
    assert dataset.ids == ["VOC/a", "VOC/b", "VOC12/a"]
    assert dataset.sources[1].ids == ("a",)
    same_name = VOCDetection([f"{folder}:test", f"{other / 'VOC'}:test"])
    assert same_name.ids == [f"{folder}/a", f"{other}/VOC/a"]


def test_one_image_in_two_sources_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'a' is in both .*VOC:train and .*VOC:test: give only one"):
        VOCDetection([f"{folder}:train", f"{folder / '..' / folder.name}:test"])


def test_two_splits_of_one_folder(folder: Path) -> None:
    make_voc(folder, {}, {"left": ["a"], "right": ["b"]})
    assert VOCDetection([f"{folder}:left", f"{folder}:right"]).ids == ["a", "b"]


# --- corrected, with one warning


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 20), [0, 0, 10, 20]),  # 0-based
        ((1, 1, 41, 31), [0, 0, 40, 30]),  # an exclusive end
        ((1.5, 2.25, 10.5, 20), [0.5, 1.25, 10.5, 20]),
    ],
)
def test_one_pixel_over_is_clipped_silently(folder: Path, box: tuple, expected: list[float]) -> None:
    assert with_box(folder, box).target(0)["boxes"].tolist() == [expected]


def test_boxes_outside_are_clipped_with_one_warning(folder: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"clipped 2 boxes reaching outside the image, in 1 annotation, .*a\.xml"
    ) as seen:
        dataset = with_box(folder, (-5, 4, 10, 20), (1, 1, 10, 20), (3, 4, 50, 35))
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert dataset.target(0)["boxes"].tolist() == [[0, 3, 10, 20], [0, 0, 10, 20], [2, 3, 40, 30]]


@pytest.mark.parametrize("box", [(9, 5, 3, 20), (3, 20, 9, 5), (3, 5, 3, 20)])
def test_boxes_without_area_are_skipped_with_one_warning(folder: Path, box: tuple) -> None:
    with pytest.warns(UserWarning, match=r"skipped 1 box inverted or without area, in 1 annotation, .*a\.xml") as seen:
        dataset = with_box(folder, box, (3, 5, 10, 20))
    assert len(seen) == 1
    assert dataset.target(0)["boxes"].tolist() == [[2, 4, 10, 20]]
    assert dataset.target(0)["labels"].tolist() == [1]


# --- refused, in one sentence


def refused(source: str | Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        VOCDetection(source if isinstance(source, str) else f"{source}:test")
    assert "\n" not in str(error.value)


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
    refused(folder, r"test\.txt is empty: write one image id a line")
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


def test_annotations_may_be_missing_where_that_is_said(folder: Path) -> None:
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
    """A damaged header is found on construction, damage behind it when the image is read."""
    path = folder / "JPEGImages/a.png"
    path.write_bytes(path.read_bytes()[:1000])
    dataset = VOCDetection(f"{folder}:test")
    with pytest.raises(InputError, match=r"a\.png is cut short"):
        dataset.image(0)
    path.write_bytes(b"GIF")
    refused(folder, r"a\.png is cut short or not an image")


# --- real data


@needs_shared
def test_cards_load_clean() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = VOCDetection([f"{SHARED}/data/cards:trainval", f"{SHARED}/data/cards:test"])
    assert len(dataset) == 363
    assert dataset.classes == ("ace", "jack", "king", "nine", "queen", "ten")
    assert sum(len(dataset.target(i)["labels"]) for i in range(len(dataset))) == 670


@needs_shared
def test_bccd_loads_with_a_counted_warning() -> None:
    with pytest.warns(UserWarning, match=r"skipped 2 boxes .* in 2 annotations, .*BloodImage_00338\.xml") as seen:
        dataset = VOCDetection([f"{SHARED}/data/bccd:trainval", f"{SHARED}/data/bccd:test"])
    assert len(seen) == 1
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(dataset.target(i)["labels"]) for i in range(len(dataset))) == 4888 - 2


# --- nothing is left unread


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
def test_a_field_that_is_there_twice_or_elsewhere(folder: Path, old: str, new: str, message: str) -> None:
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
    with pytest.warns(UserWarning, match=r"left 1 element unread that VOC does not have, .* first of them .*a\.xml"):
        VOCDetection(f"{folder}:test")


@pytest.mark.parametrize("line", ["a.png", "JPEGImages/a.png", r"JPEGImages\a.png", "a.png 1", "a  -1", " a\t"])
def test_lines_of_a_split_may_name_files(folder: Path, line: str) -> None:
    (folder / "ImageSets/Main/test.txt").write_text(f"{line}\n")
    assert VOCDetection(f"{folder}:test").ids == ["a"]


def test_a_flag_is_one_only_where_the_line_is_no_id(tmp_path: Path) -> None:
    names = ["shot", "shot 1", "shot 1.png", "x 0"]
    make_voc(tmp_path, {name: (30, 40, [CAT]) for name in names}, {"test": ["shot 1", "x 0", "shot -1"]})
    assert VOCDetection(f"{tmp_path}:test").ids == ["shot 1", "x 0", "shot"]
    (tmp_path / "ImageSets/Main/test.txt").write_text("shot 1.png\nshot 1\n")
    assert VOCDetection(f"{tmp_path}:test").ids == ["shot 1.png", "shot 1"]


def test_folders_below_that_of_the_images_are_not_taken_for_it(folder: Path) -> None:
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
