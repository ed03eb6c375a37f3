"""Sources: their form decides the format of the data set."""

from pathlib import Path

import pytest
import torch

from ohem.data.coco import COCODetection
from ohem.data.sources import open_dataset
from ohem.data.voc import VOCDetection
from ohem.data.yolo import YOLODetection
from ohem.errors import InputError
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo


@pytest.mark.filterwarnings("ignore:.*took 1 image whose label file is missing or empty")
def test_all_formats_of_the_same_data(tmp_path: Path) -> None:
    voc = open_dataset([f"{make_toy(tmp_path / 'voc')}:train"])
    coco = open_dataset([make_toy_coco(tmp_path / "coco")[0]], ["blue", "red"])
    yolo = open_dataset([make_toy_yolo(tmp_path / "yolo")[0]])
    assert isinstance(voc, VOCDetection)
    assert isinstance(coco, COCODetection)
    assert isinstance(yolo, YOLODetection)
    assert coco.ids == voc.ids == [name.rpartition("/")[2] for name in yolo.ids]
    assert coco.classes == voc.classes == yolo.classes
    for i in range(1, 5):  # the first also has a crowd, the last has no object
        for field, values in voc.target(i).items():
            assert coco.target(i)[field].tolist() == values.tolist()
            assert torch.allclose(yolo.target(i)[field].double(), values.double())


def test_formats_cannot_be_mixed(tmp_path: Path) -> None:
    voc, coco = f"{make_toy(tmp_path / 'voc')}:train", make_toy_coco(tmp_path / "coco")[0]
    with pytest.raises(InputError, match=r"voc:train' is in VOC layout and '.*train\.json:.*' in COCO's format"):
        open_dataset([voc, voc, coco])
    with pytest.raises(InputError, match=r"train\.json:.*' is in COCO's format and 'data.yaml:train' in YOLO layout"):
        open_dataset([coco, "data.yaml:train"])


def test_annotations_may_be_missing_in_voc_s_layout_where_that_is_allowed(tmp_path: Path) -> None:
    folder, coco = make_toy(tmp_path / "voc"), make_toy_coco(tmp_path / "coco")[0]
    (folder / "Annotations" / "a.xml").unlink()
    with pytest.raises(InputError, match=r"a\.xml does not exist"):
        open_dataset([f"{folder}:train"])
    assert not open_dataset([f"{folder}:train"], annotated=False).annotated
    assert open_dataset([coco], annotated=False).annotated
    Path(coco.rpartition(":")[0]).unlink()
    with pytest.raises(InputError, match="do not exist"):
        open_dataset([coco], annotated=False)


def test_without_a_source() -> None:
    with pytest.raises(InputError, match="the list of sources is empty"):
        open_dataset([])
