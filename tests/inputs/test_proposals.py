"""Proposals of a data set: from .mat files, from selective search, and from the files that keep them."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ohem.config.schema import ProposalConfig
from ohem.errors import InputError
from ohem.inputs.datasets import open_data
from ohem.inputs.proposals import build_proposals, check_cached
from ohem.proposals.store import Proposals
from tests.helpers.command_line import ohem
from tests.helpers.toy_data import make_toy, training, write_mat_file


def test_mat_files_replace_selective_search(data: Path, tmp_path: Path) -> None:
    files = (str(write_mat_file(tmp_path / "train.mat", "abc")), str(write_mat_file(tmp_path / "more.mat", "def")))
    dataset = open_data([f"{data}:train"], (), "--data.train")
    proposals = build_proposals(dataset, ProposalConfig(files=files))
    assert proposals["b"].tolist() == [[0, 0, 40, 30], [10, 5, 60, 28]]
    with pytest.raises(InputError, match="no proposals of 3 images, the first is d"):
        build_proposals(dataset, ProposalConfig(files=files[:1]))


def test_boxes_outside_their_image_are_refused(data: Path, tmp_path: Path) -> None:
    """Checks boxes of images of 80 x 64 pixels; rounding may make a box up to one pixel larger."""
    dataset = open_data([f"{data}:train"], (), "--data.train")
    for box, allowed in (([1.0, 1, 65, 81], True), ([1.0, 1, 66, 80], False), ([1.0, 1, 64, 83], False)):
        boxes, images = (np.empty((1, 6), dtype=object) for _ in range(2))
        for i, stem in enumerate("abcdef"):
            boxes[0, i], images[0, i] = np.array([box if stem == "c" else [1.0, 1, 30, 40]]), stem
        path = tmp_path / "p.mat"
        scipy.io.savemat(path, {"boxes": boxes, "images": images})
        if allowed:
            assert build_proposals(dataset, ProposalConfig(files=(str(path),)))["c"].tolist() == [[0, 0, 81, 65]]
        else:
            with pytest.raises(InputError, match=r"p\.mat: the boxes of c: .*outside the image of 80 x 64 pixels"):
                build_proposals(dataset, ProposalConfig(files=(str(path),)))


def test_proposals_of_another_image_size_are_refused(data: Path, tmp_path: Path) -> None:
    dataset = open_data([f"{data}:test"], (), "--data.test")
    config = ProposalConfig(folder=str(tmp_path), jobs=1)
    build_proposals(dataset, config)
    (path,) = tmp_path.iterdir()
    cached = Proposals.load(path)
    wide = {name: actual + np.array([0, 0, 70, 0], np.float32) for name, actual in cached.items()}
    Proposals.from_boxes(wide, cached.digests, cached.metadata).save(path)
    with pytest.raises(InputError, match=r"safetensors: the boxes of g: .*outside the image of 80 x 64 pixels"):
        build_proposals(dataset, config)["g"]


def test_other_processes_do_not_wait_for_proposals_that_are_missing(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy", {"train": "ab", "more": "abc"})
    config = ProposalConfig(folder=str(tmp_path / "proposals"), jobs=1)
    data = open_data([f"{folder}:train"], (), "--data.train")
    with pytest.raises(InputError, match="has no proposals yet"):
        check_cached(data, config)
    build_proposals(data, config)
    check_cached(data, config)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    (folder / "JPEGImages" / "c.png").write_bytes((folder / "JPEGImages" / "c.png").read_bytes())
    data = open_data([f"{folder}:train"], (), "--data.train")
    with pytest.raises(InputError, match="or not of all its images"):
        check_cached(data, config)
    assert len(build_proposals(data, config)) == 3
    check_cached(data, config)


def test_folders_of_the_same_name_do_not_share_a_proposal_file(tmp_path: Path) -> None:
    sources = [f"{make_toy(tmp_path / place / 'toy', {'train': 'ab'})}:train" for place in ("one", "two")]
    data = open_data(sources, (), "--data.train")
    with pytest.raises(InputError, match=r"would both be kept in .*toy\.train\.selective"):
        build_proposals(data, ProposalConfig(folder=str(tmp_path / "proposals"), jobs=1))
    assert len(build_proposals(data, ProposalConfig(jobs=1))) == 4


def test_run_is_trained_and_evaluated_on_mat_files(tmp_path: Path) -> None:
    data = make_toy(tmp_path / "toy")
    mat = write_mat_file(tmp_path / "all.mat", "abcdefgh")
    run = tmp_path / "run"
    assert ohem("train", run, *training(data), "--proposals.files", mat).code == 0
    assert ohem("eval", run).code == 0
    assert not (data / "Proposals").exists()
