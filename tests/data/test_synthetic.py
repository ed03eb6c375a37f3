"""The generated data set: its layout and content; files of users are never lost."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ohem.data import synthetic
from ohem.data.synthetic import CLASSES, draw_digits, make_scenes
from ohem.data.voc import VOCDetection
from ohem.errors import InputError

SMALL = {"train": 3, "test": 2, "size": (160, 200)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "scenes"
    make_scenes(folder, train=8, test=4)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_scenes_are_a_voc_data_set_of_digits(made: Path) -> None:
    train, test = VOCDetection(f"{made}:trainval", CLASSES), VOCDetection(f"{made}:test", CLASSES)
    assert (len(train), len(test)) == (8, 4)
    assert not set(train.ids) & set(test.ids)
    for data in (train, test):
        for image, target in (data[i] for i in range(len(data))):
            assert image.shape == (3, 240, 320)
            assert 3 <= len(target["boxes"]) <= 7
            assert not target["ignore"].any()


def test_single_digits_lie_in_their_boxes() -> None:
    images, boxes, labels = draw_digits(40)
    again = draw_digits(40)
    assert all(np.array_equal(one, other) for one, other in zip((images, boxes, labels), again, strict=True))
    assert not np.array_equal(images, draw_digits(40, seed=1)[0])
    assert len(set(labels.tolist())) > 5
    assert set(labels.tolist()) <= set(range(10))
    assert ((boxes[:, :2] >= 4) & (boxes[:, 2:] <= 76) & (boxes[:, 2:] > boxes[:, :2])).all()
    for image, (x1, y1, x2, y2) in zip(images.astype(int), boxes.astype(int), strict=True):
        around = np.concatenate([image[y1 - 3, x1:x2], image[y2 + 2, x1:x2]])
        assert abs(image[y1:y2, x1:x2] - np.median(around, axis=0)).max() > 50, "there is no ink"


def test_content_of_the_xml(made: Path) -> None:
    root = ElementTree.parse(made / "Annotations/test_00000.xml").getroot()
    assert [root.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["320", "240", "3"]
    assert {element.findtext("difficult") for element in root.iter("object")} == {"0"}
    assert {element.findtext("name") for element in root.iter("object")} <= set(CLASSES)


def test_boxes_are_one_based_inclusive_and_tight_to_the_ink(tmp_path: Path) -> None:
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).mkdir()
    image = np.zeros((160, 160, 3), np.float32)
    alpha = np.ones((30, 20), np.float32)
    synthetic._paste(image, alpha, (10, 50, 30, 80), np.random.default_rng(0))
    synthetic._write_scene(tmp_path, "one", image, [("five", (10, 50, 30, 80))])
    box = ElementTree.parse(tmp_path / "Annotations/one.xml").find("object/bndbox")
    assert box is not None
    assert [box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")] == ["11", "51", "30", "80"]
    ink = np.asarray(Image.open(tmp_path / "JPEGImages/one.jpg")).max(2) > 40
    rows, columns = np.nonzero(ink.any(1))[0], np.nonzero(ink.any(0))[0]
    assert np.abs(np.array([columns[0] - 10, rows[0] - 50, columns[-1] - 29, rows[-1] - 79])).max() <= 1  # JPEG blurs


def test_every_glyph_leaves_ink_up_to_the_four_edges_of_its_box() -> None:
    rng = np.random.default_rng(0)
    for digits in synthetic._sources()[0].digits:
        for glyph in (digits[0], digits[0][:4], digits[0][4:]):
            alpha = synthetic._render(glyph, rng)
            assert min(alpha.shape) >= 5
            assert max(alpha.shape) <= 90
            assert all(edge.max() > 0.5 for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))


def test_distractors_are_drawn_but_not_annotated_and_nothing_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    source = synthetic._sources()[0]
    for seed in range(5):
        pasted: list[synthetic.Box] = []
        monkeypatch.setattr(synthetic, "_paste", lambda image, alpha, box, rng, to=pasted: to.append(box))
        objects = synthetic._draw_scene(source, (240, 320), np.random.default_rng(seed))[1]
        assert [box for _, box in objects] == pasted[: len(objects)]
        assert len(pasted) >= len(objects) + 3
        count = np.zeros((240, 320), int)
        for x1, y1, x2, y2 in pasted:
            assert 0 < x1 < x2 < 320
            assert 0 < y1 < y2 < 240
            count[y1:y2, x1:x2] += 1
        assert count.max() == 1


def test_objects_without_room_are_left_out() -> None:
    rng = np.random.default_rng(0)
    assert synthetic._find_room((40, 30), (160, 160), [], rng) is not None
    assert synthetic._find_room((40, 30), (160, 160), [(60, 0, 100, 160), (0, 60, 160, 100)], rng) is not None
    assert synthetic._find_room((80, 80), (160, 160), [(60, 0, 100, 160)], rng) is None


def test_the_splits_share_no_digit_and_no_part_of_a_photograph() -> None:
    train, test = synthetic._sources()
    for label in range(len(CLASSES)):
        assert len(train.digits[label]) > len(test.digits[label]) > 50
        assert not np.shares_memory(train.digits[label], test.digits[label])
    for a, b in zip(train.photographs, test.photographs, strict=True):
        assert not np.shares_memory(a, b)


def test_no_distractor_resembles_a_digit() -> None:
    """Checks that a mirrored, turned or halved glyph is farther from every digit than digits from their neighbours."""
    train, test = synthetic._sources()
    known = np.concatenate(train.digits)

    def distance(glyphs: list[np.ndarray]) -> float:
        nearest = [np.abs(known - glyph).sum((1, 2)).min() for glyph in glyphs]
        return float(np.median(nearest))

    real = distance([glyph for digits in test.digits for glyph in digits[::8]])
    symmetric = distance([glyph[:, ::-1] for glyph in test.digits[0][::2]])
    assert symmetric < 1.3 * real  # a mirrored 0 is a 0, and the test must notice it
    for digits, transform in (
        (synthetic.MIRRORED, lambda glyph: glyph[:, ::-1]),
        (synthetic.TURNED, lambda glyph: glyph[::-1, ::-1]),
    ):
        for label in digits:
            assert distance([transform(glyph) for glyph in test.digits[label][::2]]) > 1.3 * real


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_scenes(tmp_path / name, **SMALL, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert len({data for name, data in a.items() if name.endswith(".jpg")}) == 5
    assert not any(a[name] == c[name] for name in a if name.endswith(".jpg"))


def test_a_scene_does_not_depend_on_their_number(tmp_path: Path) -> None:
    make_scenes(tmp_path / "few", **SMALL)
    make_scenes(tmp_path / "more", **{**SMALL, "train": 4})
    few, more = contents(tmp_path / "few"), contents(tmp_path / "more")
    assert all(more[name] == data for name, data in few.items() if name.startswith(("JPEGImages", "Annotations")))


def test_the_same_scenes_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_scenes(tmp_path / "a", **SMALL)
    (tmp_path / "a/proposals").write_text("made later")
    before = contents(tmp_path / "a")
    monkeypatch.setattr(synthetic, "_sources", lambda: pytest.fail("made again"))
    make_scenes(tmp_path / "a", **SMALL)
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("other", [{"train": 4}, {"test": 1}, {"size": (200, 160)}, {"seed": 1}])
def test_scenes_of_other_parameters_are_refused_and_kept(tmp_path: Path, other: dict[str, int]) -> None:
    make_scenes(tmp_path / "a", **SMALL)
    before = contents(tmp_path / "a")
    with pytest.raises(InputError, match=r"scenes\.json: .*'train': 3.*delete"):
        make_scenes(tmp_path / "a", **{**SMALL, **other})
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("content", [None, "{", '{"train": 3}'])
def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.txt").write_text("mine")
    if content is not None:
        (tmp_path / "photos/scenes.json").write_text(content)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="photos"):
        make_scenes(tmp_path / "photos", **SMALL)
    assert contents(tmp_path) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make_scenes(tmp_path / "a", **SMALL)
    (tmp_path / "a/Annotations/test_00001.xml").unlink()
    with pytest.raises(InputError, match=r"test_00001\.xml: .*missing"):
        make_scenes(tmp_path / "a", **SMALL)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def interrupted(*args: object) -> None:
        written.append(args)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "runs/a", **SMALL)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    make_scenes(tmp_path / "a", **SMALL)
    assert json.loads((tmp_path / "a/scenes.json").read_text())["train"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": 0}, {"size": (100, 320)}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 160 x 160"):
        make_scenes(tmp_path / "a", **{**SMALL, **wrong})
    assert not (tmp_path / "a").exists()


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn.*ohem\[train\]"):
        make_scenes(tmp_path / "a", **SMALL)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    left, other = tmp_path / f".scenes.{2**22 + 1}.tmp", tmp_path / f".another.{2**22 + 1}.tmp"
    for folder in (left / "JPEGImages", other):
        folder.mkdir(parents=True)
    make_scenes(tmp_path / "scenes", train=1, test=1, size=(160, 160))
    assert not left.exists()
    assert other.exists()
