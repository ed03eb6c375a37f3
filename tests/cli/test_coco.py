"""The commands on data in COCO's format, run as a user would."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.helpers.command_line import ohem, sentence
from tests.helpers.datasets import write_coco
from tests.helpers.official_coco import official
from tests.helpers.toy_data import NAMES, make_toy, make_toy_coco, training_on


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Returns the sources of the training data and the test data."""
    return make_toy_coco(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def run(sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run of 60 steps."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    assert ohem("train", folder, *training_on(*sources, steps=60)).code == 0
    return folder


def images_of(source: str) -> Path:
    return Path(source.rpartition(":")[2])


def annotations_of(source: str) -> Path:
    return Path(source.rpartition(":")[0])


def test_train_reads_the_classes_and_keeps_proposals_with_the_images(sources: tuple[str, str], run: Path) -> None:
    assert (
        "classes:\n  - red\n  - blue\n" in (run / "recipe.yaml").read_text()
    )  # in the order of their numbers, 3 and 7
    assert (images_of(sources[0]) / "Proposals" / "train.selective-search-fast.safetensors").exists()


def test_eval_prints_and_writes_coco_s_figures(sources: tuple[str, str], run: Path) -> None:
    """The official program computes the same figures from the detections that are written."""
    printed = ohem("eval", run)
    report = json.loads((run / "eval.json").read_text())
    assert (report["metric"], report["images"], report["step"]) == ("coco", 2, 60)
    assert set(report["ap"]) == set(NAMES)
    assert f"│ AP   │ 0.50      │ all     │ 100        │ {report['ap50']:.1f}" in printed.out
    figures, per_class = official(
        json.loads(annotations_of(sources[1]).read_text()), json.loads((run / "detections.json").read_text())
    )
    ours = {name: math.nan if report[name] is None else report[name] for name in figures if name != "ap"}
    assert {"ap": report["map"], **ours} == pytest.approx(figures, abs=1e-9, rel=0, nan_ok=True)
    assert list(report["ap"].values()) == pytest.approx(per_class, abs=1e-9, rel=0)
    assert report["map"] > 0
    assert report["ap_large"] is None


def test_eval_with_voc_s_metric(run: Path) -> None:
    assert "AP (voc10)" in ohem("eval", run, "--metric", "voc10").out
    report = json.loads((run / "eval.json").read_text())
    assert report["metric"] == "voc10"
    assert "ap50" not in report


def test_coco_s_metric_on_voc_data(run: Path, tmp_path: Path) -> None:
    voc = make_toy(tmp_path / "voc")
    assert ohem("eval", run, "--data", f"{voc}:test", "--metric", "coco").code == 0
    report = json.loads((run / "eval.json").read_text())
    assert (report["metric"], report["images"]) == ("coco", 2)
    assert report["ar100"] > 0


def test_every_source_has_a_result_file(sources: tuple[str, str], run: Path, tmp_path: Path) -> None:
    """A result file has the category numbers of its annotations, and no detections of other classes."""
    other = tmp_path / "other.json"
    images = Path(shutil.copytree(images_of(sources[1]), tmp_path / "others"))
    write_coco(other, {"g.png": (1, 64, 80)}, [], {"blue": 40})
    with pytest.warns(UserWarning, match=r"detections-2\.json: left out \d+ detections of classes"):
        assert ohem("eval", run, "--data", sources[1], f"{other}:{images}").code == 0
    first, second = (json.loads((run / f"detections-{i}.json").read_text()) for i in (1, 2))
    assert {entry["image_id"] for entry in first} == {ord("g"), ord("h")}
    assert {entry["category_id"] for entry in first} == {3, 7}
    assert {entry["image_id"] for entry in second} == {1}
    assert {entry["category_id"] for entry in second} == {40}
    blue = [(entry["bbox"], entry["score"]) for entry in first if entry["image_id"] == ord("g")]
    assert all((entry["bbox"], entry["score"]) in blue for entry in second)


def test_test_data_without_annotations_get_a_result_file(sources: tuple[str, str], run: Path, tmp_path: Path) -> None:
    """Checks images without annotations, as on COCO's test server."""
    content = json.loads(annotations_of(sources[1]).read_text())
    del content["annotations"]
    (tmp_path / "image_info.json").write_text(json.dumps(content))
    assert ohem("eval", run, "--data", f"{tmp_path / 'image_info.json'}:{images_of(sources[1])}").code == 0
    assert json.loads((run / "eval.json").read_text())["map"] is None
    assert len(json.loads((run / "detections.json").read_text())) > 0


def test_eval_with_several_scales_and_voting(sources: tuple[str, str], run: Path) -> None:
    """The detections of the given options are written and scored."""
    assert ohem("eval", run).code == 0
    plain = json.loads((run / "detections.json").read_text())
    options = ["--test.scales", 48, 64, 80, "--test.long", 120, "--test.iterations", 2, "--test.voting"]
    assert ohem("eval", run, *options).code == 0
    report, actual = (json.loads((run / name).read_text()) for name in ("eval.json", "detections.json"))
    assert (report["metric"], report["test"]["scales"], report["test"]["voting"]) == ("coco", [48, 64, 80], True)
    figures, _ = official(json.loads(annotations_of(sources[1]).read_text()), actual)
    assert report["map"] == pytest.approx(figures["ap"], abs=1e-9, rel=0)
    assert actual != plain
    for x, y, width, height in (entry["bbox"] for entry in actual):
        assert min(x, y) >= 0
        assert x + width <= 80 + 1e-3
        assert y + height <= 64 + 1e-3


def test_propose(sources: tuple[str, str], tmp_path: Path) -> None:
    assert ohem("propose", *sources, "--folder", tmp_path / "caches", "--jobs", 1).code == 0
    assert sorted(path.name for path in (tmp_path / "caches").iterdir()) == [
        "images.test.selective-search-fast.safetensors",
        "images.train.selective-search-fast.safetensors",
    ]


# Bad input


def edited(source: str, folder: Path, old: str, new: str) -> str:
    """Returns the source with a text of its annotations, which must be present, replaced."""
    text = annotations_of(source).read_text()
    assert old in text
    (folder / "edited.json").write_text(text.replace(old, new, 1))
    return f"{folder / 'edited.json'}:{images_of(source)}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"images"', "images", "is not well-formed JSON"),
        ('"images"', '"pictures"', "edited.json has no images: add it"),
        ('"category_id": 7', '"category_id": 8', "edited.json has the category_id 8, which no category has"),
        ('"file_name": "a.png"', '"file_name": "z.png"', "edited.json has the file_name 'z.png', which is not in"),
        ('"width": 80', '"width": 81', "edited.json has a size of 81 x 64 (width x height)"),
    ],
)
def test_bad_annotations(sources: tuple[str, str], tmp_path: Path, old: str, new: str, message: str) -> None:
    text = sentence(ohem("train", tmp_path / "run", *training_on(edited(sources[0], tmp_path, old, new), None)))
    assert message in text
    assert not (tmp_path / "run").exists()


def test_sources_that_are_not_there_or_not_whole(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "has no folder of images" in sentence(ohem("train", run, *training_on("instances.json", None)))
    assert "nowhere.json do not exist" in sentence(ohem("train", run, *training_on("nowhere.json:images", None)))
    assert "ANNOTATIONS.json:IMAGES" in sentence(ohem("train", run, "--recipe", "demo-ohem"))


def test_no_object_in_any_image(sources: tuple[str, str], tmp_path: Path) -> None:
    images = {f"{stem}.png": (i, 64, 80) for i, stem in enumerate("abc")}
    path = write_coco(tmp_path / "empty.json", images, [], {"red": 1})
    source = f"{path}:{images_of(sources[0])}"
    assert "has no object" in sentence(ohem("train", tmp_path / "run", *training_on(source, None)))


def test_class_in_test_that_is_not_in_train(sources: tuple[str, str], tmp_path: Path) -> None:
    test = edited(sources[1], tmp_path, '"name": "red"', '"name": "rde"')
    text = sentence(ohem("train", tmp_path / "run", *training_on(sources[0], test)))
    assert "edited.json" in text
    assert "did you mean 'red'" in text


def test_submit_is_for_the_voc_server(run: Path, tmp_path: Path) -> None:
    """Checks the refusal, which comes before anything is detected or written."""
    assert ohem("eval", run).code == 0
    before = (run / "eval.json").read_bytes()
    text = sentence(ohem("eval", run, "--submit", tmp_path / "results"))
    assert "leave it out" in text
    assert "detections.json" in text
    assert (run / "eval.json").read_bytes() == before
    assert not (tmp_path / "results").exists()


def test_formats_cannot_be_mixed(sources: tuple[str, str], tmp_path: Path) -> None:
    voc = make_toy(tmp_path / "voc")
    options = training_on(sources[0], None)
    options.insert(options.index(sources[0]), f"{voc}:train")
    assert "cannot be mixed" in sentence(ohem("train", tmp_path / "run", *options))
