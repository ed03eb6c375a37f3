"""Damaged and unusual image files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import training, write_mat_file


def remove_proposals(data: Path) -> None:
    """Removes the proposals, since a test changes the images."""
    shutil.rmtree(data / "Proposals")


def test_truncated_jpeg(run: Path, data: Path) -> None:
    remove_proposals(data)
    path = data / "JPEGImages" / "c.jpg"
    Image.open(path.with_suffix(".png")).save(path)
    path.with_suffix(".png").unlink()
    path.write_bytes(path.read_bytes()[:-200])
    assert str(path) in sentence(ohem("train", run, *training(data)))


def damage_pixels(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_image_with_damaged_pixels_is_named_once(run: Path, data: Path, tmp_path: Path, workers: int) -> None:
    """The .mat file gives the proposals, so the training is the first to read the image."""
    path = data / "JPEGImages" / "c.png"
    damage_pixels(path)
    mat = write_mat_file(tmp_path / "all.mat", "abcdefgh")
    options = ["--data.workers", workers, "--proposals.files", mat]
    text = sentence(ohem("train", run, *training(data, steps=6), *options))
    assert str(path) in text
    assert text.count(str(path)) == 1


def test_image_that_is_damaged_after_its_proposals_were_made(run: Path, data: Path) -> None:
    """The image has changed, so its proposals are made again, before the first step."""
    path = data / "JPEGImages" / "c.png"
    damage_pixels(path)
    with pytest.warns(UserWarning, match=f"1 image files have changed .*{path}"):
        text = sentence(ohem("train", run, *training(data)))
    assert f"{path} is cut short or not an image" in text
    assert not (run / "metrics.csv").exists()


@pytest.mark.parametrize("kind", ["grey", "cmyk", "sixteen"])
def test_grey_cmyk_and_16_bit_images_are_read(run: Path, data: Path, kind: str) -> None:
    remove_proposals(data)
    for path in sorted((data / "JPEGImages").glob("*.png")):
        image = Image.open(path).convert("RGB")
        if kind == "cmyk":
            path.unlink()
            image.convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
        elif kind == "grey":
            image.convert("L").save(path)
        else:
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    assert ohem("train", run, *training(data)).code == 0
    assert (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("recipe", ["demo-ohem", "demo-frcn"])
def test_images_without_proposals_are_trained_and_evaluated(run: Path, data: Path, recipe: str) -> None:
    remove_proposals(data)
    for stem in "gh":
        Image.fromarray(np.full((64, 80, 3), 7, np.uint8)).save(data / "JPEGImages" / f"{stem}.png")
    shutil.copy(data / "JPEGImages" / "g.png", data / "JPEGImages" / "a.png")
    shutil.copy(data / "JPEGImages" / "g.png", data / "JPEGImages" / "b.png")
    (data / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    assert ohem("train", run, *training(data, steps=3, recipe=recipe)).code == 0
    assert ohem("eval", run).code == 0
    assert json.loads((run / "eval.json").read_text())["map"] == 0
