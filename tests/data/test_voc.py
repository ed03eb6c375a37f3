"""Reading of folders in VOC layout: values, several sources, corrections with one warning."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ohem.data.voc import VOCDetection
from ohem.errors import InputError
from tests.data.conftest import CAT, edit, refused
from tests.helpers.contracts import check_dataset
from tests.helpers.datasets import make_voc
from tests.helpers.reference import SHARED, needs_shared


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


def test_changing_a_target_does_not_change_the_data_set(folder: Path) -> None:
    dataset = VOCDetection(f"{folder}:train")
    dataset.target(0)["boxes"].zero_()
    assert dataset.target(0)["boxes"].sum() > 0


def test_data_set_can_be_sent_to_a_worker(folder: Path) -> None:
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


# Several sources


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


# Corrections with one warning


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


# Real data


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
