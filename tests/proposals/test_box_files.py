"""Proposals of one's own, in files of three formats."""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from ohem.errors import InputError
from ohem.proposals.box_files import BoxFile

BOXES = np.array([[0, 0, 9, 9], [5, 5, 30.5, 20], [1, 1, 1.5, 2]])
EMPTY = np.zeros((0, 4))
SCORES = np.array([[0.5], [0.25], [0.5]])


def write_json(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    entries: list[dict[str, Any]] = []
    for name, array in arrays.items():
        entries += [] if len(array) else [{"image_id": name, "bbox": []}]
        for x1, y1, x2, y2, *score in array.tolist():
            entry = {"image_id": name, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            entries.append(entry | ({"score": score[0]} if score else {}))
    path.with_suffix(".json").write_text(json.dumps(entries))
    return path.with_suffix(".json")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    save_file(dict(arrays), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


Write = Callable[[Path, Mapping[str, np.ndarray]], Path]
WRITERS = [write_json, write_npz, write_safetensors]
ARRAYS = [write_npz, write_safetensors]


@pytest.mark.parametrize("write", WRITERS)
def test_boxes_are_those_of_the_file(write: Write, tmp_path: Path) -> None:
    file = BoxFile(write(tmp_path / "boxes", {"images/train/a": BOXES, "7": EMPTY}))
    assert sorted(file) == ["7", "images/train/a"]
    for boxes in (file, pickle.loads(pickle.dumps(file))):
        assert len(boxes) == 2
        assert boxes["images/train/a"].dtype == np.float32
        assert boxes["images/train/a"].tolist() == BOXES.tolist()
        assert boxes["7"].shape == (0, 4)
        assert "b" not in boxes


@pytest.mark.parametrize("write", WRITERS)
def test_the_highest_score_is_first_and_equal_scores_keep_their_order(write: Write, tmp_path: Path) -> None:
    file = BoxFile(write(tmp_path / "boxes", {"a": np.hstack([BOXES, SCORES])}))
    assert file["a"].tolist() == BOXES[[0, 2, 1]].tolist()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("box", "fault"),
    [([9, 1, 4, 9], "inverted or has no area"), ([-4, 1, 9, 9], "outside"), ([1, 1, 1e9, 9], "outside")],
)
def test_impossible_boxes_are_refused(write: Write, tmp_path: Path, box: list[float], fault: str) -> None:
    file = BoxFile(write(tmp_path / "p", {"a": BOXES, "b": np.vstack([BOXES, [box]])}))
    assert len(file["a"]) == 3
    with pytest.raises(InputError, match=rf"p\.\w+: the boxes of b: 1 of 4 are impossible, first number 3, .*{fault}"):
        file["b"]


@pytest.mark.parametrize("write", ARRAYS)
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 6)), r"float64 \[3, 6\]: write numbers \[P, 4\]"),
        (np.zeros(4), r"float64 \[4\]"),
        (np.zeros((3, 4), bool), "bool"),
        (np.array([[1, 1, np.nan, 9]], np.float32), "not finite"),
        (np.array([[1, 1, 9, np.inf]], np.float16), "not finite"),
        (np.array([[1, 1, 9, 9, np.nan]]), "a score is not finite"),
    ],
)
def test_other_arrays_are_refused(write: Write, tmp_path: Path, array: np.ndarray, message: str) -> None:
    file = BoxFile(write(tmp_path / "p", {"a": array}))
    with pytest.raises(InputError, match=rf"p\.\w+: the boxes of a: .*{message}"):
        file["a"]


@pytest.mark.parametrize("write", ARRAYS)
@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "f8"])
def test_boxes_of_every_type_of_number(write: Write, tmp_path: Path, dtype: str) -> None:
    file = BoxFile(write(tmp_path / "p", {"a": np.array([[0, 0, 200, 100]], dtype)}))
    assert file["a"].tolist() == [[0, 0, 200, 100]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a list of boxes: write a list of objects with image_id"),
        ("[3", "not well-formed JSON"),
        ('[{"image_id": 1, "image_id": 2}]', "one object has the key 'image_id' twice"),
        ("[3]", "entry 1 is 3: write a list"),
        ('[{"bbox": [1, 2, 3, 4]}]', "entry 1 has the image_id None"),
        ('[{"image_id": true, "bbox": [1, 2, 3, 4]}]', "has the image_id True"),
        ('[{"image_id": 1, "bbox": [1, 2, 3]}]', r"has the bbox \[1, 2, 3\]: write \[x, y, width, height\]"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, NaN]}]', "has the bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, "4"]}]', "has the bbox"),
        ('[{"image_id": 1}]', "has the bbox None"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": null}]', "has the score None"),
        (
            '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}, {"image_id": 1, "bbox": [1, 2, 3, 4]}]',
            "only some boxes",
        ),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"p\.json: .*{message}"):
        BoxFile(path)


def test_numbers_and_names_of_images_are_text(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[{"image_id": 7, "bbox": [1, 2, 3, 4]}, {"image_id": "007", "bbox": [1, 2, 3, 4]}]')
    assert list(BoxFile(path)) == ["7", "007"]


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, a=np.array([[[1, 2, 3, 4]], None], object))
    with pytest.raises(InputError, match=r"p\.npz: not a complete \.npz file of numbers \(Object arrays cannot"):
        BoxFile(path)


def test_a_smaller_size_in_the_header_of_an_array_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, a=np.ones((30, 4)))
    path.write_bytes(path.read_bytes().replace(b"(30, 4)", b"(10, 4)"))
    with pytest.raises(InputError, match=r"not a complete \.npz file"):
        BoxFile(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, a=BOXES)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("a.npy")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(InputError, match="an array is there twice"):
        BoxFile(path)


@pytest.mark.parametrize("write", WRITERS)
def test_damaged_files_are_refused(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "p", {"a": BOXES})
    content = path.read_bytes()
    for damaged in (content[:-9], b"", b"x" * 100, content[9:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"p\{path.suffix}: "):
            BoxFile(path)
    path.unlink()
    with pytest.raises(InputError, match=rf"p\{path.suffix}: no such file: correct --proposals.files"):
        BoxFile(path)
    path.mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        BoxFile(path)


def test_numbers_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_torch({"a": torch.ones(1, 4, dtype=torch.bfloat16)}, path)
    with pytest.raises(InputError, match=r"p\.safetensors: "):
        BoxFile(path)["a"]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.pkl: no file of proposals: name a file with the suffix \.mat, \.json"):
        BoxFile(tmp_path / "p.pkl")
