"""A world of small files: data sets, runs, caches and everything else that the program reads, made once and copied."""

import json
import shutil
from collections.abc import Callable, Collection
from functools import cached_property
from itertools import count
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import yaml
from benchmarks.scale.edge_forest import write_edge_forest
from PIL import Image
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from scipy.io import savemat

from ohem.detection.backbones import BACKBONES
from ohem.proposals import generate
from tests.detection.toy_backbone import caffe_layers, toy
from tests.fuzz.commands import COMMANDS, Command, on_coco, on_toy
from tests.fuzz.damage import remove
from tests.helpers.caffe_files import caffemodel
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo

CACHE = "train.selective-search-fast.safetensors"
LARGE = {"compare": "compare", "table": "reproduce", "demo": "demo", "coco-run": "on COCO"}  # folder -> its commands


def make_world(world: Path, leave_out: Collection[str] = ()) -> None:
    """Makes everything in the folder `world`, except what only the commands `leave_out` need."""
    _make_voc(world / "voc")
    shutil.copytree(world / "voc", world / "ready")
    shutil.copytree(world / "voc", world / "partial")
    make_toy_coco(world / "coco")
    make_toy_yolo(world / "yolo")
    make_toy(world / "toy", {"train": "xyz"})
    (world / "toy/JPEGImages").rename(world / "negatives")
    _make_weights(world)
    _make_mat(world)
    _make_boxes(world / "boxes")
    _make_detections(world)
    write_edge_forest(world / "edges.yml.gz")
    (world / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    _propose(world)
    for arguments in (
        ["train", world / "run", *on_toy(world / "ready", 4)],
        ["eval", world / "run"],
        ["bootstrap", world / "run"],
        COMMANDS["bootstrap on crops"].arguments(world),
        ["train", world / "coco-run", *on_coco(world, 4)],
    ):
        _run(*arguments)
    _run(*COMMANDS["hard on detections"].arguments(world))
    _run(*COMMANDS["audit on detections"].arguments(world))
    _make_decisions(world)
    for name in ("compare", "reproduce", "demo"):
        if name not in leave_out:
            _run(*COMMANDS[name].arguments(world))


CONFIG = {
    "solver": {"lr": 0.002, "warmup": 2, "momentum": 0.8, "clip": 10.0},
    "sampler": {"batch_size": 32, "nms_iou": 0.6, "per_image": True},
    "data": {"flip": True, "scales": [56, 64]},
    "test": {"score": 0.01},
}


def _run(*arguments: object) -> None:
    result = Command(lambda _: arguments, lambda _: {})(Path())
    assert result.code == 0, result


def _make_voc(folder: Path) -> None:
    """Writes the toy data; some images are JPEG files with EXIF data."""
    make_toy(folder)
    exif = Image.Exif()
    exif[0x0112] = 1  # upright
    for stem in "abg":
        path = folder / "JPEGImages" / f"{stem}.png"
        Image.open(path).save(path.with_suffix(".jpg"), quality=95, exif=exif)
        path.unlink()


def _make_weights(world: Path) -> None:
    torch.manual_seed(5)
    weights = BACKBONES["tiny"]().state_dict()
    save_file(weights, world / "weights.safetensors")
    torch.save(weights, world / "weights.pth")
    (world / "weights.caffemodel").write_bytes(caffemodel(caffe_layers(toy(seed=4))))


def _make_mat(world: Path) -> None:
    random = np.random.default_rng(0)
    boxes, images = np.empty((1, 8), object), np.empty((1, 8), object)
    for i, stem in enumerate("abcdefgh"):
        corners = random.integers(1, 30, (20, 2))
        boxes[0, i] = np.concatenate([corners, corners + random.integers(5, 34, (20, 2))], 1).astype(np.float64)
        images[0, i] = stem
    savemat(world / "boxes.mat", {"boxes": boxes, "images": images})


def _make_boxes(folder: Path) -> None:
    """Writes proposals in files of three formats, each of some of the images a to h."""
    folder.mkdir()
    random = np.random.default_rng(1)
    boxes = {}
    for stem in "abcdefgh":
        corners = random.integers(0, 30, (20, 2))
        boxes[stem] = np.concatenate([corners, corners + random.integers(5, 34, (20, 2))], 1).astype(np.float32)
    results = [
        {"image_id": stem, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(random.random())}
        for stem in "abc"
        for x1, y1, x2, y2 in boxes[stem].tolist()
    ]
    (folder / "abc.json").write_text(json.dumps(results))
    np.savez(folder / "de.npz", **{stem: boxes[stem] for stem in "de"})
    save_numpy({stem: boxes[stem] for stem in "fgh"}, folder / "fgh.safetensors")


def _make_detections(world: Path) -> None:
    """Writes the boxes of abc.json as detections of the first class."""
    boxes = json.loads((world / "boxes/abc.json").read_text())
    (world / "detections.json").write_text(json.dumps([{**box, "category_id": 1} for box in boxes]))


def _make_decisions(world: Path) -> None:
    """Writes decisions about the first suspects, as the page of `ohem audit` saves them."""
    report = json.loads((world / "audit/audit.json").read_text())
    choices = ("accept", "unsure", "reject", "skip")
    suspects = [
        {key: suspect[key] for key in ("image", "given", "given_box", "given_class", "proposed_box", "proposed_class")}
        for suspect in report["suspects"][:4]
    ]
    decisions = [{**suspect, "decision": choice} for suspect, choice in zip(suspects, choices, strict=True)]
    content = {"sources": report["sources"], "classes": report["classes"], "decisions": decisions}
    (world / "decisions.json").write_text(json.dumps(content))


def _propose(world: Path) -> None:
    """Makes caches of `ready`, and in `partial` the files that a killed `ohem propose` leaves."""
    _run(*COMMANDS["propose"].arguments(world))
    yolo = world / "yolo/data.yaml"
    _run("propose", f"{yolo}:val", f"{yolo}:train", "--negatives", world / "negatives", "--jobs", 1)
    with mock.patch.object(generate, "PART_SECONDS", 0.0), mock.patch.object(shutil, "rmtree"):
        _run(*COMMANDS["propose again"].arguments(world))
    (world / "partial/Proposals" / CACHE).unlink()
    parts = sorted((world / "partial/Proposals").glob("*.parts/*"), key=lambda path: path.read_bytes())
    for path in parts[4:]:
        path.unlink()


# Kinds of files


class Kind:
    """Describes files of a kind, and the commands that read them.

    Args:
        pattern: Pattern of the files, in the world.
        commands: Keys of COMMANDS.
        own: Whether users write such files, so that the program cannot notice every change.
        prepare: Changes the copy of the world before the damage.
    """

    def __init__(
        self, pattern: str, *commands: str, own: bool = False, prepare: Callable[[Path], None] | None = None
    ) -> None:
        self.pattern, self.commands, self.own, self.prepare = pattern, commands, own, prepare

    def files(self, world: Path) -> list[Path]:
        """Returns the files, sorted by content: names may be random."""
        files = [path for path in world.glob(self.pattern) if path.is_file()]
        return sorted(files, key=lambda path: (path.parent, path.read_bytes()))


def _seconds(calls: int) -> float:
    return calls / 64


class World:
    """Holds the complete files in `base`, and a copy of them in `case`, in which commands run.

    Both are made in the folder `case`, since runs store the paths of their data.
    """

    def __init__(self, folder: Path, leave_out: Collection[str] = ()) -> None:
        self.base, self.case, self.leave_out = folder / "base", folder / "case", leave_out

    def make(self) -> None:
        """Makes `base`, the same each time: a simulated clock makes the seconds equally long."""
        self.case.mkdir(parents=True)
        with mock.patch("time.perf_counter", side_effect=map(_seconds, count())):
            make_world(self.case, self.leave_out)
        self.case.rename(self.base)

    @cached_property
    def kinds(self) -> list[str]:
        """Returns the kinds of files that exist."""
        return [name for name, kind in KINDS.items() if kind.files(self.base)]

    @cached_property
    def examples(self) -> list[Path]:
        """Returns a file of each kind."""
        return [KINDS[name].files(self.base)[0] for name in self.kinds]

    def reset(self, kind: Kind, command: str) -> None:
        """Makes `case` again, without the large folders that `command` does not read."""
        remove(self.case)
        unread = [name for name, commands in LARGE.items() if not command.endswith(commands)]
        shutil.copytree(self.base, self.case, ignore=lambda at, _: unread if Path(at) == self.base else [])
        if kind.prepare:
            kind.prepare(self.case)


def _without_newest(world: Path) -> None:
    (world / "run/checkpoint.pt").unlink()


OF_RUN = ("resume", "eval", "detect", "loss", "bootstrap")
KINDS: dict[str, Kind] = {
    "picture to train on": Kind("voc/JPEGImages/[a-f].*", "train", own=True),
    "picture with proposals": Kind("ready/JPEGImages/[a-f].*", "train on cached", "propose", own=True),
    "picture of a run": Kind("ready/JPEGImages/[a-f].*", "resume", "loss", own=True),
    "picture to test on": Kind("ready/JPEGImages/[gh].*", "eval", "detect", own=True),
    "xml to train on": Kind("voc/Annotations/[a-f].xml", "train", own=True),
    "xml of a run": Kind("ready/Annotations/[a-f].xml", "resume", "eval --loss", own=True),
    "xml to test on": Kind("ready/Annotations/[gh].xml", "eval", own=True),
    "split to train on": Kind("voc/ImageSets/Main/train.txt", "train", own=True),
    "split of a run": Kind("ready/ImageSets/Main/train.txt", "resume", own=True),
    "split to test on": Kind("ready/ImageSets/Main/test.txt", "eval", own=True),
    "coco json to train on": Kind("coco/train.json", "train on COCO", own=True),
    "coco json of a run": Kind("coco/train.json", "resume on COCO", own=True),
    "coco json to test on": Kind("coco/test.json", "eval on COCO", own=True),
    "data.yaml": Kind("yolo/data.yaml", "train on YOLO", own=True),
    "list of images": Kind("yolo/train.txt", "train on YOLO", own=True),
    "labels to train on": Kind("yolo/labels/train/*.txt", "train on YOLO", own=True),
    "labels to test on": Kind("yolo/labels/val/*.txt", "eval on YOLO", own=True),
    "negative": Kind("negatives/*.png", "train on YOLO", own=True),
    "config": Kind("config.yaml", "train --config", own=True),
    "recipe.yaml": Kind("run/recipe.yaml", *OF_RUN),
    "checkpoint.pt": Kind("run/checkpoint.pt", *OF_RUN),
    "checkpoint.previous.pt": Kind("run/checkpoint.previous.pt", "resume", "eval", prepare=_without_newest),
    "snapshot": Kind("run/snapshots/*", "loss"),
    "metrics.csv": Kind("run/metrics.csv", "resume"),
    "metrics.csv of compare": Kind("compare/*/metrics.csv", "compare"),
    "loss_all.csv": Kind("run/loss_all.csv", "resume", "loss"),
    "eval.json of compare": Kind("compare/*/eval.json", "compare"),
    "eval.json of reproduce": Kind("table/*/eval*.json", "reproduce"),
    "map_curve.json of compare": Kind("compare/*/map_curve.json", "compare"),
    "mark of compare": Kind("compare/*/*.line", "compare"),
    "proposals": Kind(f"ready/Proposals/{CACHE}", "train on cached", "resume", "propose"),
    "proposals to test on": Kind("ready/Proposals/test.*", "eval", "propose"),
    "parts of proposals": Kind("partial/Proposals/*.parts/*", "propose again"),
    "mat": Kind("boxes.mat", "train on .mat", own=True),
    "boxes of one's own": Kind("boxes/*", "train on own boxes", own=True),
    "detections of one's own": Kind("detections.json", "hard on detections", "audit on detections", own=True),
    "hard.json": Kind("hard/hard.json", "train on regions", own=True),
    "model of edges": Kind("edges.yml.gz", "propose by edges", own=True),
    "decisions.json": Kind("decisions.json", "audit --apply", own=True),
    "mining log": Kind("run/mining/*.parquet", "report"),
    "weights.safetensors": Kind("weights.safetensors", "train from .safetensors", own=True),
    "weights.pth": Kind("weights.pth", "train from .pth", own=True),
    "caffemodel": Kind("weights.caffemodel", "caffe"),
    "scenes.json": Kind("demo/data/scenes.json", "demo"),
    "features": Kind("run/bootstrap/features.safetensors", "bootstrap"),
    "features of crops": Kind("run/crops/features.safetensors", "bootstrap on crops"),
}
