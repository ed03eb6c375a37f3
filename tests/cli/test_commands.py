"""Rules for every command: a new command without an entry here fails the first test."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from ohem.cli import app
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, make_toy_coco, training, training_on


class World(NamedTuple):
    """Holds data in VOC layout, and runs on these and on data in COCO's format."""

    voc: Path
    run: Path
    coco_run: Path


COCO = ("coco/train.json:coco/images", "coco/test.json:coco/images")
Arguments = Callable[[World], Sequence[object]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "world"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_toy(Path("voc"))
        make_toy_coco(Path("coco"))
        assert ohem("train", "run", *training(Path("voc"), steps=1)).code == 0
        assert ohem("train", "coco-run", *training_on(*COCO, steps=1)).code == 0
    return folder


@pytest.fixture
def world(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Returns a copy, in which commands run."""
    folder = Path(shutil.copytree(made, tmp_path / "world"))
    monkeypatch.chdir(folder)
    return World(Path("voc"), Path("run"), Path("coco-run"))


def _small(world: World) -> list[object]:
    return [*training(world.voc, steps=1), "--methods", "frcn", "ohem"]


def _decisions(world: World) -> Path:
    path = Path("decisions.json")
    path.write_text(json.dumps({"sources": [f"{world.voc}:train"], "classes": ["blue", "red"], "decisions": []}))
    return path


OVER_INPUT: dict[str, list[Arguments]] = {
    "demo": [lambda w: ["demo", w.voc / "JPEGImages" / "a.png"]],
    "propose": [],  # it writes into the folder of the data, a file of its own
    "train": [
        lambda w: ["train", w.voc, *training(w.voc)],
        lambda w: ["train", w.voc / "JPEGImages", *training(w.voc)],
        lambda w: ["train", w.voc / "JPEGImages" / "a.png", *training(w.voc)],
        lambda w: ["train", w.coco_run, *training(w.voc)],
    ],
    "eval": [
        lambda w: ["eval", w.run, "--out", w.voc / "Annotations" / "g.xml"],
        lambda w: ["eval", w.run, "--out", w.voc / "JPEGImages" / "g.png"],
        lambda w: ["eval", w.run, "--out", w.run / "recipe.yaml"],
        lambda w: ["eval", w.run, "--out", w.run / "checkpoint.pt"],
        lambda w: ["eval", w.run, "--out", w.run / "metrics.csv"],
        lambda w: ["eval", w.run, "--out", w.voc / "JPEGImages"],
        lambda w: ["eval", w.coco_run, "--out", "coco/test.json"],
        lambda w: ["eval", w.run, "--submit", w.voc / "Annotations"],
    ],
    "loss": [
        lambda w: ["loss", w.run, "--plot", w.voc / "JPEGImages" / "a.png"],
        lambda w: ["loss", w.run, "--plot", w.run / "recipe.yaml"],
    ],
    "detect": [
        lambda w: ["detect", w.run, "photo.jpg", "--out", "."],
        lambda w: ["detect", w.run, "voc/JPEGImages/g.png", "--out", "taken"],
        lambda w: ["detect", w.run, "voc/JPEGImages/g.png", "--out", w.run / "recipe.yaml"],
    ],
    "compare": [lambda w: ["compare", w.voc, *_small(w)], lambda w: ["compare", w.run / "recipe.yaml", *_small(w)]],
    "reproduce": [
        lambda w: [
            *["reproduce", "table1", "--small", "--out", w.run / "recipe.yaml"],
            *["--data.train", f"{w.voc}:train", "--data.test", f"{w.voc}:test"],
        ]
    ],
    "bench": [
        lambda w: ["bench", "--backbones", "tiny", "--data.train", f"{w.voc}:train", "--out", "coco/test.json"],
        lambda w: ["bench", "--backbones", "tiny", "--data.train", f"{w.voc}:train", "--out", w.voc / "JPEGImages"],
    ],
    "bootstrap": [],  # it writes into RUN/bootstrap alone
    "hard": [
        lambda w: ["hard", w.run, "--out", w.voc / "JPEGImages"],
        lambda w: ["hard", w.run, "--out", w.run],
        lambda w: ["hard", w.run, "--data", "coco/train.json:coco/images", "--out", "coco"],
        lambda w: ["hard", w.run, "--out", w.voc / "JPEGImages" / "a.png"],
    ],
    "report": [
        lambda w: ["report", w.run, "--out", w.voc / "Annotations" / "g.xml"],
        lambda w: ["report", w.run, "--out", "taken/page.html"],
        lambda w: ["report", w.run, "--out", "coco/test.html"],
        lambda w: ["report", w.run, "--out", w.voc],
    ],
    "audit": [
        lambda w: ["audit", f"{w.voc}:train", "--recipe", "demo-ohem", "--out", w.run / "recipe.yaml"],
        lambda w: ["audit", f"{w.voc}:train", "--recipe", "demo-ohem", "--out", w.voc],
        lambda w: ["audit", "coco/train.json:coco/images", "--run", w.run, "--out", "coco"],
        lambda w: ["audit", "--apply", _decisions(w), "--out", w.voc],
    ],
    "recipes": [],  # it writes nothing
}
LINES = [
    pytest.param(arguments, id=f"{name} {i}") for name, lines in OVER_INPUT.items() for i, arguments in enumerate(lines)
]


def test_every_command_has_an_entry() -> None:
    assert {name for name in app if not name.startswith("-")} == set(OVER_INPUT)


@pytest.mark.parametrize("arguments", LINES)
def test_output_never_overwrites_input(arguments: Arguments, world: World) -> None:
    for source, target in (("g.png", "photo.jpg"), ("a.png", "taken/g.jpg")):
        Path(target).parent.mkdir(exist_ok=True)
        shutil.copy(world.voc / "JPEGImages" / source, target)
    Path("taken/page.html").write_text("<html></html>")
    line = arguments(world)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    sentence(ohem(*line))
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert {path for path in after if path not in before and path.name.startswith(".")} == set()


@pytest.mark.parametrize("name", OVER_INPUT)
def test_every_command_explains_itself(name: str) -> None:
    result = ohem(name, "--help")
    assert result.code == 0
    assert f"ohem {name}" in result.out
