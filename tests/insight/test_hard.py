"""`ohem hard`: which false positives it chooses, the folder that it writes, and a step of training on it."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ohem.config.recipe_file import read_run
from ohem.data.sources import open_dataset
from ohem.inputs.examples import open_training_examples
from ohem.insight.hard import hard_negatives
from ohem.insight.hard_files import GREY, Region, show_regions
from ohem.insight.results_file import read_detections
from tests.helpers.command_line import ohem, sentence
from tests.helpers.datasets import make_voc
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo, training

OBJECT, ELSEWHERE = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


class Truth:
    """Stands for a data set: objects of one image, of which the last is ignored."""

    def __len__(self) -> int:
        return 1

    def target(self, index: int) -> dict[str, torch.Tensor]:
        boxes = torch.tensor([OBJECT, [70.0, 70.0, 90.0, 90.0]])
        return {"boxes": boxes, "labels": torch.tensor([1, 1]), "ignore": torch.tensor([False, True])}


@pytest.mark.parametrize(
    ("rows", "boxes", "on_objects"),
    [
        ([(OBJECT, 1, 0.9)], [], 0),
        ([(ELSEWHERE, 1, 0.9), (ELSEWHERE, 2, 0.8)], [ELSEWHERE], 0),  # one region for two classes
        ([(ELSEWHERE, 1, 0.05)], [], 0),  # below the lowest score
        ([(OBJECT, 1, 0.9), (OBJECT, 1, 0.8)], [], 1),  # a second detection of an object is no background
        ([(OBJECT, 2, 0.9)], [], 1),  # neither is an object of another class
        ([([0.0, 0.0, 10.0, 4.0], 1, 0.9)], [[0.0, 0.0, 10.0, 4.0]], 0),  # IoU 0.4
        ([([0.0, 0.0, 10.0, 5.0], 1, 0.9)], [], 1),  # IoU 0.5
        ([([70.0, 70.0, 90.0, 90.0], 1, 0.9)], [], 0),  # an ignored object may be detected
        ([([75.0, 75.0, 80.0, 80.0], 2, 0.9)], [], 1),  # in an ignored one there may be an object
        ([([60.0, 60.0, 99.0, 99.0], 2, 0.9)], [], 1),  # an ignored one is in it
        ([([50.0, 50.0, 50.0, 60.0], 1, 0.9)], [], 0),  # without area
        ([(ELSEWHERE, 1, 0.3), ([20.0, 20.0, 30.0, 30.0], 2, 0.7)], [[20.0, 20.0, 30.0, 30.0], ELSEWHERE], 0),
    ],
)
def test_false_positives_counted_by_hand(
    rows: Sequence[tuple[list[float], int, float]], boxes: list[list[float]], on_objects: int
) -> None:
    given, labels, scores = zip(*rows, strict=True)
    detections = {"boxes": torch.tensor(given), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
    truth: Any = Truth()
    chosen, left_out = hard_negatives([detections], truth, 2, 0.1, 10)
    assert ([row[1] for row in chosen], left_out) == (boxes, on_objects)
    assert hard_negatives([detections], truth, 2, 0.1, 1)[0] == chosen[:1]


def write_detections(path: Path, *rows: tuple[object, object, list[float], float]) -> Path:
    entries = [dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in rows]
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of 80 x 64 pixels: `a` has a cat at (10, 10) to (30, 30), `b` has none."""
    things = [("cat", 11, 11, 30, 30, 0)]
    return make_voc(tmp_path / "voc", {"a": (64, 80, things), "b": (64, 80, [])}, {"train": "ab"})


@pytest.fixture
def mined(voc: Path, tmp_path: Path) -> Path:
    """The folder of three false positives: the hardest in `b`, and two in `a`, of which one touches the cat."""
    file = write_detections(
        tmp_path / "detections.json",
        *[("a", "cat", [40, 20, 20, 20], 0.8), ("a", 1, [20, 20, 20, 20], 0.7), ("a", 1, [10, 10, 20, 20], 0.99)],
        ("b.png", "cat", [0, 0, 10, 10], 0.9),
    )
    result = ohem("hard", "--detections", file, "--data", f"{voc}:train", "--out", tmp_path / "hard")
    assert result.code == 0, result
    assert f"{tmp_path}/hard/hard.json: 3 false positives in 2 of 2 images" in result.out
    return tmp_path / "hard"


def test_folder_has_the_regions_and_their_pictures(mined: Path, voc: Path) -> None:
    regions = json.loads((mined / "hard.json").read_text())["regions"]
    assert [(Path(region["image"]).name, region["box"], region["score"]) for region in regions] == [
        ("b.png", [0, 0, 10, 10], 0.9),
        ("a.png", [40, 20, 60, 40], 0.8),
        ("a.png", [20, 20, 40, 40], 0.7),
    ]
    assert [region["overlap"] for region in regions] == [0, 0, pytest.approx(100 / 700, abs=1e-4)]
    assert {region["label"] for region in regions} == {"cat"}
    names = ["00001-b.jpg", "00002-a.jpg"]
    assert [[path.name for path in sorted((mined / part).iterdir())] for part in ("pictures", "regions")] == [names] * 2
    with Image.open(mined / "hardest.jpg") as sheet:
        assert sheet.width > 3 * 192


def test_all_but_the_regions_is_grey() -> None:
    """The second region overlaps an object too much, and an object covers a corner of the first."""
    image = torch.randint(0, 100, (3, 40, 60), dtype=torch.uint8)
    region = Region(0, Path("a.png"), (20.0, 10.0, 30.0, 20.0), "cat", 0.9, 0.05)
    other = region._replace(box=(45.0, 25.0, 59.0, 39.0), overlap=0.2)
    alone = show_regions(image, [region, other], torch.tensor([[30.0, 20.0, 50.0, 40.0]]))
    visible = torch.zeros(40, 60, dtype=torch.bool)
    visible[5:25, 15:35] = True  # half of its size on each side
    visible[20:, 30:50] = False
    assert alone is not None
    assert torch.equal(alone[:, visible], image[:, visible])
    assert set(alone[:, ~visible].flatten().tolist()) == {GREY}
    assert show_regions(image, [other], torch.zeros(0, 4)) is None


def test_repeated_call_replaces_its_own_files_only(mined: Path, voc: Path, tmp_path: Path) -> None:
    file = write_detections(tmp_path / "fewer.json", ("a", 1, [40, 20, 20, 20], 0.8))
    line = ["hard", "--detections", file, "--data", f"{voc}:train", "--out", mined]
    assert ohem(*line).code == 0
    assert [path.name for path in (mined / "regions").iterdir()] == ["00001-a.jpg"]
    assert ohem("propose", f"{voc}:train", "--negatives", mined / "regions", "--jobs", 1).code == 0
    assert (mined / "regions/Proposals").is_dir()
    assert ohem(*line).code == 0
    for name in ("regions/mine.jpg", "notes.txt", "Proposals"):
        (mined / name).write_text("mine")
        assert sentence(ohem(*line)).startswith(f"{mined / name} is no file of `ohem hard`")
        (mined / name).unlink()
    (mined / "hard.json").write_text("[]")
    assert "hard.json is no file of `ohem hard`" in sentence(ohem(*line))
    assert (mined / "regions/00001-a.jpg").exists()


def test_data_in_the_folder_are_not_overwritten(mined: Path, tmp_path: Path) -> None:
    file = write_detections(tmp_path / "second.json", ("00001-b", "cat", [0, 0, 10, 10], 0.9))
    line = ["hard", "--detections", file, "--data", mined / "regions", "--out", mined]
    assert "is read by this command, and lies in" in sentence(ohem(*line))


def test_no_false_positive_is_an_empty_list(voc: Path, tmp_path: Path) -> None:
    file = write_detections(tmp_path / "detections.json", ("a", 1, [10, 10, 20, 20], 0.9))
    out = tmp_path / "hard"
    assert ohem("hard", "--detections", file, "--data", f"{voc}:train", "--out", out).code == 0
    assert json.loads((out / "hard.json").read_text())["regions"] == []
    run = ["train", tmp_path / "run", *training(make_toy(tmp_path / "toy"), steps=1)]
    assert "names no region" in sentence(ohem(*run, "--data.negatives", out / "hard.json"))


def test_training_takes_the_file(tmp_path: Path) -> None:
    """All detections of an untrained run; then a second round on its regions, which is resumed."""
    toy, run, second = make_toy(tmp_path / "toy"), tmp_path / "run", tmp_path / "second"
    options = [*training(toy, steps=1), "--test.score", 0.0]
    assert ohem("train", run, *options).code == 0
    result = ohem("hard", run, "--score", 0, "--most", 20, "--draw", 2)
    assert result.code == 0, result
    file = run / "hard/hard.json"
    regions = json.loads(file.read_text())["regions"]
    assert len(regions) == 20
    assert [region["score"] for region in regions] == sorted((region["score"] for region in regions), reverse=True)
    images = {region["image"] for region in regions}

    trained = ohem("train", second, *options, "--data.negatives", file)
    assert trained.code == 0, trained
    assert f"20 regions of {len(images)} images are always trained on as background" in trained.out
    assert ohem("train", second, *options, "--data.negatives", file).code == 0
    examples = open_training_examples(read_run(second))
    assert len(examples) == 6
    index = next(i for i in range(6) if str(examples.data.path(i)) == regions[0]["image"])
    expected = [region["box"] for region in regions if region["image"] == regions[0]["image"]]
    example, mirrored = (examples.example(index, 0, flipped) for flipped in (False, True))
    assert (example.target["background"] / example.scale).tolist() == [pytest.approx(box, abs=1e-3) for box in expected]
    assert mirrored.target["background"][0, 0] / example.scale == pytest.approx(80 - expected[0][2], abs=1e-3)

    regions[0]["box"][0] += 0.5
    file.write_text(json.dumps({"detections": "changed", "regions": regions}))
    assert "are not those that" in sentence(ohem("train", second, *options, "--data.negatives", file))
    assert "is given twice" in sentence(ohem("train", tmp_path / "new", *options, "--data.negatives", file, file))


@pytest.mark.filterwarnings("ignore:.*whose label file is missing or empty")
@pytest.mark.parametrize(
    ("make", "image_id", "category_id"),
    [
        (lambda at: make_toy_coco(at)[0], ord("b"), 3),  # the second category
        (lambda at: make_toy_yolo(at)[0], "b", 2),
        (lambda at: make_toy_yolo(at)[0], "images/train/b", "red"),
        (lambda at: f"{make_toy(at)}:train", "b.png", "red"),
    ],
)
def test_ids_of_all_formats(make: Callable[[Path], str], image_id: object, category_id: object, tmp_path: Path) -> None:
    data = open_dataset([make(tmp_path / "toy")])
    file = write_detections(tmp_path / "detections.json", (image_id, category_id, [1, 50, 30, 20], 0.5))
    detections, classes = read_detections(file, data)
    (index,) = [i for i, of_image in enumerate(detections) if len(of_image["boxes"])]
    assert data.path(index).stem == "b"
    assert classes[int(detections[index]["labels"]) - 1] == "red"
    assert detections[index]["boxes"].tolist() == [[1, 50, 31, 64]]  # clipped


def test_every_detection_in_a_folder_without_objects_is_false(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "007.png")
    file = write_detections(tmp_path / "detections.json", (7, 3, [0, 0, 9, 9], 0.5), (7, "dog", [20, 20, 9, 9], 0.6))
    assert ohem("hard", "--detections", file, "--data", folder, "--out", tmp_path / "hard").code == 0
    regions = json.loads((tmp_path / "hard/hard.json").read_text())["regions"]
    assert [region["label"] for region in regions] == ["dog", "3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "not well-formed JSON"),
        ("{}", "not a list of boxes"),
        ([("z", 1, [0, 0, 9, 9], 0.5)], "entry 1 has the image_id 'z', which is of no image of the data"),
        ([("a", 2, [0, 0, 9, 9], 0.5)], "entry 1 has the category_id 2, which no class has: give one of 'cat', 1"),
        ([("a", 1, [0, 0, 9], 0.5)], r"entry 1 has the bbox \[0, 0, 9\]"),
        ('[{"image_id": "a", "category_id": 1, "bbox": [0, 0, 9, 9]}]', "entry 1 has no score"),
        ([("a", 1, [9, 9, -2, 9], 0.5)], r"from \(9, 9\) to \(7, 18\) is inverted or lies mostly outside"),
        ([("a", 1, [40, 40, 200, 9], 0.5)], r"mostly outside the image of 80 x 64 pixels"),
    ],
)
def test_bad_detections(content: Any, message: str, voc: Path, tmp_path: Path) -> None:
    file = tmp_path / "detections.json"
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        write_detections(file, *content)
    text = sentence(ohem("hard", "--detections", file, "--data", f"{voc}:train", "--out", tmp_path / "hard"))
    assert re.search(message, text), text
    assert not (tmp_path / "hard").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a run or --detections FILE.json"),
        (["run", "--detections", "x.json"], "one of both"),
        (["--detections", "x.json", "--data", "voc:train"], "name a folder for them with --out"),
        (["--detections", "x.json", "--out", "hard"], "name them with --data"),
        (["run", "--score", "2"], "--score 2.0 is out of range"),
        (["run", "--most", "0"], "--most 0 is out of range"),
        (["run", "--draw", "-1"], "--draw -1 is out of range"),
        (["run"], "run is not a run"),
        (["--detections", "x.json", "--data", "voc", "--out", "hard"], "voc has annotations in Annotations/"),
        (["--detections", "x.json", "--data", "plain", "voc:train", "--out", "hard"], "give one kind at a time"),
        (["--detections", "x.json", "--data", "voc:train", "--out", "voc/JPEGImages/a.png"], "is a file"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert message in sentence(ohem("hard", *arguments))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "is not well-formed JSON"),
        ('{"images": []}', "has no list of regions"),
        ('{"regions": [{"image": 3, "box": [0, 0, 9, 9]}]}', "region 1 has the image 3"),
        ('{"regions": [{"image": "a\\u0000", "box": [0, 0, 9, 9]}]}', "region 1 has the image 'a"),
        ('{"regions": [{"image": "IMAGE", "box": [0, 0, 9]}]}', "region 1 has the box [0, 0, 9]"),
        ('{"regions": [{"image": "nowhere.png", "box": [0, 0, 9, 9]}]}', "nowhere.png, which is not trained on"),
        ('{"regions": [{"image": "IMAGE", "box": [0, 0, 9, 900]}]}', "which is outside the image"),
        ('{"regions": [{"image": "IMAGE", "box": [9, 0, 9, 9]}]}', "which is inverted or has no area"),
    ],
)
def test_bad_regions(content: str | None, message: str, tmp_path: Path) -> None:
    toy, file = make_toy(tmp_path / "toy"), tmp_path / "hard.json"
    if content is not None:
        file.write_text(content.replace("IMAGE", str(toy / "JPEGImages/a.png")))
    run = ["train", tmp_path / "run", *training(toy, steps=1), "--data.negatives", file]
    assert message in sentence(ohem(*run))


def test_detectors_with_proposals_of_their_own_take_the_pictures() -> None:
    line = ["train", "run", "--recipe", "ssdlite320-mobilenet-v3-large", "--data.train", "x:y"]
    text = sentence(ohem(*line, "--data.negatives", "empty/", "hard.json"))
    assert "regions of hard.json: give --data.negatives the folder regions/ next to it" in text
