"""An evaluation in several real processes writes the files of one in a single process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ohem.evaluation.map_curve import NAME as CURVE
from ohem.training.roi_loss import NAME as LOSSES
from tests.fuzz.commands import without_seconds
from tests.helpers.command_line import in_processes, ohem
from tests.helpers.toy_data import make_toy_coco, training_on

DETECTIONS = "detections.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run on data in COCO's format, of which an evaluation also writes the detections."""
    folder = tmp_path_factory.mktemp("shared")
    train, _ = make_toy_coco(folder / "coco")
    # To test on the six images that it is trained on: two processes have three each, four have one or two.
    options = ["--test.score", 0.01, "--run.snapshot-every", 1]
    assert ohem("train", folder / "run", *training_on(train, train, steps=3), *options).code == 0
    return folder / "run"


def results(run: Path) -> dict[str, Any]:
    return {name: without_seconds(json.loads((run / name).read_text())) for name in ("eval.json", DETECTIONS)}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_images_and_the_training_images_of_the_loss(run: Path, count: int, tmp_path: Path) -> None:
    assert ohem("eval", run, "--loss").code == 0
    expected = results(run)
    assert expected["eval.json"]["images"] == 6
    assert expected["eval.json"]["loss_all_rois"] > 0
    for name in expected:
        (run / name).unlink()
    said = in_processes(count, [["eval", run, "--loss"]], tmp_path)
    assert results(run) == expected
    assert said.count("IoU") == 1, said  # the head of the table


def test_an_image_that_one_process_cannot_read_is_said_once(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.parent, tmp_path / "copy"))
    sources = f"{copy / 'coco/train.json'}:{copy / 'coco/images'}"
    image = copy / "coco" / "images" / "b.png"
    image.write_bytes(image.read_bytes()[:-200])
    said = in_processes(2, [["eval", run, "--data", sources, "--out", tmp_path / "out.json"]], tmp_path, status=2)
    assert said.count("b.png is cut short") == 1, said
    assert said.count("their proposals are made again") == 1, said
    assert "Traceback" not in said
    assert not (tmp_path / "out.json").exists()


def test_processes_share_the_images_to_detect_in(run: Path, tmp_path: Path) -> None:
    images = sorted((run.parent / "coco/images").glob("[a-e].png"))
    one, two = tmp_path / "one", tmp_path / "two"
    assert ohem("detect", run, *images, "--out", one, "--jobs", 1).code == 0
    in_processes(2, [["detect", run, *images, "--out", two, "--jobs", 1]], tmp_path)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert [entry["image"] for entry in json.loads((two / DETECTIONS).read_text())] == list(map(str, images))


def test_processes_share_the_images_of_every_snapshot(run: Path, tmp_path: Path) -> None:
    lines = [["loss", run], ["eval", run, "--curve", 3]]
    written, said = [], []
    for count in (1, 3):
        for name in (LOSSES, CURVE, "eval.json"):
            (run / name).unlink(missing_ok=True)
        said.append(in_processes(count, lines, tmp_path))
        written.append([(run / name).read_text() for name in (LOSSES, CURVE)])
    assert written[0] == written[1]
    assert written[0][0].count("train.json") == 3
    assert [point["step"] for point in json.loads(written[0][1])["points"]] == [1, 2, 3]
    assert [text.count("SGD step") for text in said] == [2, 2], said
    assert not any("Traceback" in text for text in said)


def test_a_file_that_cannot_be_written_is_said_once(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / DETECTIONS).mkdir(parents=True)
    said = in_processes(2, [["detect", run, run.parent / "coco/images/a.png", "--out", out]], tmp_path, status=2)
    assert said.count("ohem: ") == 1, said
    assert "Traceback" not in said
