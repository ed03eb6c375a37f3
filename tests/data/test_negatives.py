"""Folders of images without an object, which are trained as background."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ohem.config.schema import ProposalConfig
from ohem.data.sources import open_dataset
from ohem.errors import InputError
from ohem.inputs.proposals import build_proposals
from ohem.training.fingerprints import digests_of_data
from tests.helpers.contracts import check_dataset
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo


def make_negatives(folder: Path, *names: str) -> Path:
    noise = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_negatives(tmp_path / "empty", "x.jpg", "deep/er/x.png", "a.png")
    (made / "notes.txt").write_text("no image")
    (made / ".x.jpg").touch()
    return made


@pytest.mark.filterwarnings("ignore:.*whose label file is missing or empty")
@pytest.mark.parametrize(
    "make", [lambda at: f"{make_toy(at)}:train", lambda at: make_toy_coco(at)[0], lambda at: make_toy_yolo(at)[0]]
)
def test_negatives_are_images_without_an_object(make, folder, tmp_path) -> None:
    source = make(tmp_path / "toy")
    data, plain = open_dataset([source]), open_dataset([source])
    data.add_negatives([str(folder)])
    check_dataset(data)
    assert len(data) == 9
    assert [str(name).removeprefix("empty/") for name in data.ids[6:]] == ["a", "deep/er/x", "x"]
    assert [len(data.target(i)["labels"]) for i in range(6, 9)] == [0, 0, 0]
    assert data.size(8) == (40, 50)
    assert (data.classes, data.annotated) == (plain.classes, True)
    assert data.objects() == plain.objects()
    assert digests_of_data(data) != digests_of_data(plain)
    assert set(data.files()) >= {folder / "x.jpg"}


def test_no_negatives_change_nothing(tmp_path: Path) -> None:
    data = open_dataset([f"{make_toy(tmp_path)}:train"])
    before = list(data.ids), list(data.sources)
    data.add_negatives([])
    assert (data.ids, data.sources) == before


def test_negatives_get_proposals_of_their_own(folder: Path, tmp_path: Path) -> None:
    data = open_dataset([f"{make_toy(tmp_path / 'toy', {'train': 'a'})}:train"])
    data.add_negatives([str(folder)])
    boxes = build_proposals(data, ProposalConfig(jobs=1))
    assert list(boxes) == ["toy/a", "empty/a", "empty/deep/er/x", "empty/x"]
    assert all(len(boxes[name]) for name in boxes)
    assert (folder / "Proposals/negatives.selective-search-fast.safetensors").is_file()
    assert len(build_proposals(data, ProposalConfig(jobs=1))) == 4


def test_what_cannot_be_negative_is_refused(folder: Path, tmp_path: Path) -> None:
    data = open_dataset([f"{make_toy(tmp_path / 'toy')}:train"])

    def refused(message: str, *folders: Path) -> None:
        with pytest.raises(InputError, match=message):
            data.add_negatives([str(one) for one in folders])
        assert len(data.ids) == len(data.sources[0].ids) == 6

    refused("the folder .*nowhere does not exist: correct --data.negatives", tmp_path / "nowhere")
    refused("does not exist", folder / "x.jpg")
    (tmp_path / "none").mkdir()
    refused("the folder .*none of --data.negatives has no image", tmp_path / "none")
    refused(r"toy/JPEGImages/a\.png of --data\.negatives is in .*toy:train already", tmp_path / "toy/JPEGImages")
    refused(r"empty/deep/er/x\.png of --data\.negatives is in .* already", folder, folder / "deep")
    make_negatives(folder, "x.png")
    refused(r"x\.png of the folder .*empty of --data\.negatives has the id 'x' of x\.jpg", folder)
    (folder / "x.png").unlink()
    (folder / "x.jpg").write_bytes(b"no image")
    (folder / "a.png").write_bytes(b"no image")
    refused(r"a\.png is cut short or not an image .*\(1 more with a fault: .*x\.jpg\)", folder)
