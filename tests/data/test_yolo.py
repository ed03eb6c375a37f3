"""Data sets in YOLO layout: where images and labels are, and what rows mean."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from ohem.data.annotations.findings import Note
from ohem.data.yolo import YOLODetection, is_yolo, label_path, parse_source
from ohem.errors import InputError
from tests.helpers.datasets import save_turned

ROW = "0 0.5 0.5 0.5 0.5\n"  # in an image of 40 x 30: (10, 7.5, 30, 22.5)
NAMES = ["cat", "dog"]


def save(path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_turned(np.zeros((30, 40, 3), np.uint8), path, orientation)


def make(root: Path, rows: str | bytes = ROW, **fields: object) -> str:
    """Writes an image `a` with labels; `fields` are those of the YAML file. Returns the source."""
    save(root / "images/train/a.png")
    label = root / "labels/train/a.txt"
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_bytes(rows.encode() if isinstance(rows, str) else rows)
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({"train": "images/train", "names": NAMES, **fields}))
    return f"{path}:train"


def read(source: str, *kinds: Note) -> YOLODetection:
    """Reads a source that gives notes of these kinds."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = YOLODetection(source)
    assert len(said) == len(kinds), [str(one.message) for one in said]
    for one, kind in zip(said, kinds, strict=True):
        assert kind.text(1) in str(one.message)
    return data


def boxes(data: YOLODetection, index: int = 0) -> list[list[float]]:
    return data.target(index)["boxes"].tolist()


def refused(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        YOLODetection(source)
    assert "\n" not in str(error.value)


def test_rows_are_fractions_of_the_image(tmp_path: Path) -> None:
    data = read(make(tmp_path, "1 0.25 0.5 0.5 1\r\n\n0 .5 5e-1 0.5 0.5\n"))
    assert boxes(data) == [[0, 0, 20, 30], [10, 7.5, 30, 22.5]]
    assert data.target(0)["labels"].tolist() == [2, 1]
    assert data.ids == ["images/train/a"]
    assert data.classes == ("cat", "dog")


def test_a_polygon_is_its_bounding_box(tmp_path: Path) -> None:
    data = read(make(tmp_path, f"0 0.25 0.5 0.5 0.1 0.75 0.5\n{ROW}1 .1 .2 .3 .2 .3 .4 .1 .4\n"))
    assert np.allclose(boxes(data), [[10, 3, 30, 15], [10, 7.5, 30, 22.5], [4, 6, 12, 12]])


def test_keypoints_after_a_box_are_not_a_polygon(tmp_path: Path) -> None:
    data = read(make(tmp_path, "0 0.5 0.5 0.5 0.5 0.1 0.1 0.2 0.2\n", kpt_shape=[2, 2]))
    assert boxes(data) == [[10, 7.5, 30, 22.5]]


def test_repeated_rows_are_left_out(tmp_path: Path) -> None:
    assert len(boxes(read(make(tmp_path, ROW + "0 .50 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n"), Note.REPEATED))) == 2


def test_rounding_is_clipped_without_a_note(tmp_path: Path) -> None:
    assert boxes(read(make(tmp_path, "0 0.5 0.245 1.005 0.5\n"))) == [[0, 0, 40, pytest.approx(14.85)]]


def test_images_without_labels_have_no_object(tmp_path: Path) -> None:
    source = make(tmp_path)
    for stem in "bc":
        save(tmp_path / f"images/train/{stem}.png")
    (tmp_path / "labels/train/b.txt").touch()
    with pytest.warns(UserWarning, match="took 2 images whose label file is missing or empty as images without an obj"):
        data = YOLODetection(source)
    assert [len(boxes(data, i)) for i in range(3)] == [1, 0, 0]
    assert data.annotated
    (tmp_path / "labels/train/a.txt").unlink()
    (tmp_path / "labels/train/b.txt").unlink()
    refused(
        source, r"no image of .*data\.yaml:train has a label file: put the labels of .*a\.png into .*labels/train/a"
    )


@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_are_those_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    source = make(tmp_path, "0 0.25 0.5 0.5 0.5\n")
    save(tmp_path / "images/train/a.png", orientation)
    data = read(source, Note.TURNED)
    assert boxes(data) == [[[0, 7.5, 20, 22.5]], [[0, 10, 15, 30]]][orientation == 6]
    assert data.size(0) == data.image(0).shape[1:]


def test_equal_names_of_images_in_two_folders(tmp_path: Path) -> None:
    source = make(tmp_path, train=["images/train", "images/more"])
    save(tmp_path / "images/more/deep/a.png")
    (tmp_path / "labels/more/deep").mkdir(parents=True)
    (tmp_path / "labels/more/deep/a.txt").write_text("1 0.5 0.5 1 1\n")
    for hidden in ("images/train/._a.png", "images/.trash/b.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).touch()
    data = read(source)
    assert data.ids == ["images/train/a", "images/more/deep/a"]
    assert [data.target(i)["labels"].tolist() for i in range(2)] == [[1], [2]]


def test_lists_of_images(tmp_path: Path) -> None:
    """Checks paths relative to the list, relative to the root, absolute, and written on Windows."""
    source = make(tmp_path, path=str(tmp_path), train="lists/train.txt", names={0: "cat", 1: "dog"}, nc=2)
    for name in ("images/train/b", "lists/images/c", "images/train/d"):
        save(tmp_path / f"{name}.png")
        label = label_path(tmp_path / f"{name}.png").with_suffix(".txt")
        label.parent.mkdir(exist_ok=True)
        label.write_text(ROW)
    lines = ["images/train/a.png", "./images/c.png", str(tmp_path / "images/train/b.png"), "", "images\\train\\d.png"]
    (tmp_path / "lists/train.txt").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert read(source).ids == ["images/train/a", "lists/images/c", "images/train/b", "images/train/d"]


def test_the_root_is_relative_to_the_yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "data")
    for where, root in (
        (tmp_path / "data.yaml", "data"),
        (tmp_path / "data/sub/x.yml", ".."),
        (Path("y.yaml"), "data"),
    ):
        where = tmp_path / where if where.is_absolute() else tmp_path / "elsewhere" / where
        where.parent.mkdir(exist_ok=True)
        where.write_text(yaml.safe_dump({"path": root, "train": "images/train", "names": NAMES}))
        monkeypatch.chdir(tmp_path)  # the last one is relative to this folder only
        data = read(f"{where}:train")
        assert (data.ids, data.sources[0].folder) == (["images/train/a"], tmp_path / "data")


def test_the_layout_of_roboflow(tmp_path: Path) -> None:
    """Checks ../train/images, which there means train/images next to the YAML file."""
    source = make(tmp_path, train="../train/images")
    save(tmp_path / "train/images/b.png")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "train/labels/b.txt").write_text(ROW)
    assert read(source).ids == ["train/images/b"]


def test_label_paths() -> None:
    assert label_path(Path("/x/images/y/images/z/a.b.jpg")) == Path("/x/images/y/labels/z/a.b.txt")
    assert label_path(Path("/x/pictures/a.jpg")) == Path("/x/pictures/a.txt")
    assert label_path(Path("/images.old/a.jpg")) == Path("/images.old/a.txt")


def test_a_download_script_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    source = make(tmp_path, path="nowhere", download=f"from pathlib import Path\nPath({str(made)!r}).touch()")
    refused(source, "has the path 'nowhere', which is no folder in .* \\(a download script is not run\\)")
    assert not made.exists()


def test_forms_of_a_source() -> None:
    assert parse_source("C:/x.y/data.yml:val") == (Path("C:/x.y/data.yml"), "val")
    assert is_yolo("DATA.YAML:train")
    assert not is_yolo("VOC2007:trainval")
    for text in ("data.yaml", "data.yaml:", "data.yaml:valid", ""):
        with pytest.raises(
            InputError, match=r"has no split: write data\.yaml:SPLIT, where SPLIT is train, val or test"
        ):
            parse_source(text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2 0.5 0.5 0.5 0.5", "has the class 2, and the names are numbered from 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "has the class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "has the class 0.5"),
        ("cat 0.5 0.5 0.5 0.5", "has 'cat', which is not a number"),
        ("0 0.5 nan 0.5 0.5", "has 'nan', which is not a number"),
        ("0 0.5 0.5 0.5 1_0", "has '1_0', which is not a number"),
        ("0 0,5 0.5 0.5 0.5", "has '0,5', which is not a number"),
        ("0 10 7.5 30 22.5", "has the number 10, and a fraction of the image is at most 1: divide pixels"),
        ("0 0.5 0.5 1e999 0.5", "has the number inf"),
        ("0 0.5 0.5 -0.5 0.5", "has a negative number"),
        ("0 -0.5 0.5 0.5 0.5", "has a negative number"),
        ("0 0.1 0.1 0.5 0.5 0.3 -0.2", "has a negative number"),
        (
            "0 0.5 0.5 0.5",
            "has 3 numbers after the class: write cx cy width height, or x and y of three or more points",
        ),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 5 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9 0.1 0.2", "has 7 numbers"),
        ("0", "has 0 numbers"),
        ("0 1 1 0.5 0.5", "has a box of which most lies outside"),
    ],
)
def test_faults_of_rows_are_refused(tmp_path: Path, row: str, message: str) -> None:
    source = make(tmp_path, f"{ROW}\n{row}\n")
    refused(source, rf"line 3 of .*labels/train/a\.txt {message}")


def test_all_files_with_a_fault_are_counted(tmp_path: Path) -> None:
    source = make(tmp_path, "9 0.5 0.5 0.5 0.5")
    save(tmp_path / "images/train/b.png")
    (tmp_path / "labels/train/b.txt").write_bytes(b"0 \xff\n")
    refused(source, r"a\.txt has the class 9.*\(1 more with a fault: .*b\.txt\)")
    (tmp_path / "labels/train/a.txt").write_text(ROW)
    refused(source, r"the labels .*b\.txt are not UTF-8 text \(.*\): save them as that")
    (tmp_path / "labels/train/b.txt").unlink()
    (tmp_path / "labels/train/b.txt").mkdir()
    refused(source, r"the labels .*b\.txt: Is a directory")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": None}, "has no names"),
        ({"names": []}, "has no names"),
        ({"names": "classes.txt"}, "has no names"),
        ({"names": {1: "cat", 2: "dog"}}, r"has names with the numbers \[1, 2\]: number them 0, 1, 2"),
        ({"names": ["cat", True]}, "has the name True of class 1: write it in quotes"),
        ({"names": ["cat", "cat"]}, "has the name 'cat' twice"),
        ({"nc": 3}, "has nc 3 and 2 names"),
        ({"kpt_shape": 17}, "has the kpt_shape 17"),
        ({"path": 3}, "has the path 3"),
        ({"train": ""}, "has no train: add it"),
        ({"train": "", "test": "images"}, "has no train: choose among test, or add it"),
        ({"train": [3]}, "has 3 in train: write a folder of images"),
        ({"train": "images/trian"}, "has 'images/trian' in train, which does not exist in"),
        ({"train": "x" * 5000}, "does not exist in"),
        ({"train": "images/train/a.png"}, "which is neither: write a folder"),
        ({"train": "labels"}, r"data\.yaml:train has no image"),
        ({"train": ["images/train", "images"]}, r"a\.png of .*data\.yaml:train is there twice"),
        ({"train": "list.txt"}, r"line 2 of .*list\.txt is 'none\.png', which is no image file"),
    ],
)
def test_faults_of_the_yaml_file_are_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    source = make(tmp_path, **fields)
    (tmp_path / "list.txt").write_text("images/train/a.png\nnone.png\n")
    refused(source, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "is not well-formed YAML"),
        ("names: [a]\nnames: [b]", r"is not well-formed YAML \(one mapping has a key twice\)"),
        ("names: {0: a, 0: b}", "has a key twice"),
        ("- train", "is not in YOLO layout"),
        ("{[1]: 2}", "is not well-formed YAML"),
        ("a: !!python/object/apply:os.system [exit]", "is not well-formed YAML"),
    ],
)
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = make(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    refused(source, message)
    (tmp_path / "data.yaml").unlink()
    refused(source, r"data\.yaml does not exist: correct the source")


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    source = make(tmp_path)
    save(tmp_path / "images/train/a.webp")
    refused(source, r"a\.webp of .*:train has the id 'images/train/a' of a\.png: remove or rename one")


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    source = make(tmp_path)
    (tmp_path / "images/train/loop").symlink_to(tmp_path / "images/train")
    assert read(source).ids == ["images/train/a"]


def test_numbers_as_names(tmp_path: Path) -> None:
    assert read(make(tmp_path, names=[0, 1])).classes == ("0", "1")
