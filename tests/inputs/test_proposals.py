"""Proposals of a data set: from files of the user, from selective search, and from the files that keep them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from safetensors.numpy import save_file

from ohem.config.schema import ProposalConfig
from ohem.errors import InputError
from ohem.inputs.datasets import open_data
from ohem.inputs.proposals import build_proposals, check_cached, methods_of
from ohem.proposals.store import BoxFile, Proposals
from ohem.training import fingerprints
from ohem.training.fingerprints import digest_of_proposals
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, make_toy_coco, make_toy_yolo, training, write_mat_file


def test_mat_files_replace_selective_search(data: Path, tmp_path: Path) -> None:
    files = (str(write_mat_file(tmp_path / "train.mat", "abc")), str(write_mat_file(tmp_path / "more.mat", "def")))
    dataset = open_data([f"{data}:train"], (), "--data.train")
    proposals = build_proposals(dataset, ProposalConfig(files=files))
    assert proposals["b"].tolist() == [[0, 0, 40, 30], [10, 5, 60, 28]]
    with pytest.raises(InputError, match="no proposals of 3 images, the first is d"):
        build_proposals(dataset, ProposalConfig(files=files[:1]))


def write_json(path: Path, ids: Sequence[object]) -> str:
    boxes = [{"image_id": i, "bbox": [4 + place, 4, 9, 9], "score": 0.5} for place, i in enumerate(ids)]
    path.write_text(json.dumps(boxes))
    return str(path)


def test_files_of_several_formats_are_used_together(data: Path, tmp_path: Path) -> None:
    mat, more = str(write_mat_file(tmp_path / "abc.mat", "abc")), write_json(tmp_path / "def.json", "def")
    dataset = open_data([f"{data}:train"], (), "--data.train")
    proposals = build_proposals(dataset, ProposalConfig(files=(mat, more)))
    assert proposals["b"].tolist() == [[0, 0, 40, 30], [10, 5, 60, 28]]
    assert proposals["e"].tolist() == [[5, 4, 14, 13]]
    other = write_json(tmp_path / "cdef.json", "cdef")
    with pytest.raises(InputError, match=r"cdef\.json: other boxes of c than in .*abc\.mat: name only one of them"):
        build_proposals(dataset, ProposalConfig(files=(mat, other)))


def test_boxes_exported_from_the_cache_are_the_same_boxes(data: Path, tmp_path: Path) -> None:
    dataset = open_data([f"{data}:train"], (), "--data.train")
    cached = build_proposals(dataset, ProposalConfig())
    boxes = {name: cached[name] for name in dataset.ids}
    np.savez(tmp_path / "p.npz", **boxes)
    save_file(boxes, tmp_path / "p.safetensors")
    entries = [
        {"image_id": name, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": -place}
        for name in boxes
        for place, (x1, y1, x2, y2) in enumerate(boxes[name].tolist())
    ]
    (tmp_path / "p.json").write_text(json.dumps(entries[::-1]))
    expected = digest_of_proposals(dataset.ids, cached, 2000)
    for suffix in ("npz", "safetensors", "json"):
        proposals = build_proposals(dataset, ProposalConfig(files=(str(tmp_path / f"p.{suffix}"),)))
        assert digest_of_proposals(dataset.ids, proposals, 2000) == expected
    proposals = build_proposals(dataset, ProposalConfig(files=(str(tmp_path / "p.safetensors"),)))
    assert digest_of_proposals(dataset.ids, proposals, 5) != expected


def test_the_ids_of_coco_are_numbers_but_file_names_in_mat_files(tmp_path: Path) -> None:
    dataset = open_data([make_toy_coco(tmp_path / "coco")[0]], (), "--data.train")
    numbers = write_json(tmp_path / "numbers.json", [ord(stem) for stem in "abcdef"])
    assert build_proposals(dataset, ProposalConfig(files=(numbers,)))["b"].tolist() == [[5, 4, 14, 13]]
    mat = str(write_mat_file(tmp_path / "all.mat", "abcdef"))
    assert len(build_proposals(dataset, ProposalConfig(files=(mat,)))["b"]) == 2
    names = write_json(tmp_path / "names.json", "abcdef")
    with pytest.raises(InputError, match="has no proposals of 6 images, the first is 97"):
        build_proposals(dataset, ProposalConfig(files=(names,)))


@pytest.mark.filterwarnings("ignore:.*whose label file is missing or empty")
def test_the_ids_of_yolo_and_of_negatives_are_paths(tmp_path: Path) -> None:
    dataset = open_data([make_toy_yolo(tmp_path / "yolo")[1]], (), "--data.train")
    dataset.add_negatives([str(make_toy(tmp_path / "toy") / "JPEGImages")])
    ids = [*(f"images/val/{stem}" for stem in "gh"), *"abcdefgh"]
    assert dataset.sources[1].ids == tuple("abcdefgh")
    proposals = build_proposals(dataset, ProposalConfig(files=(write_json(tmp_path / "p.json", ids),)))
    assert [boxes[0][0] for boxes in proposals.values()] == [*range(4, 14)]


def test_images_of_one_id_are_refused(tmp_path: Path) -> None:
    """Checks two sources of a training, and images of training and test."""
    one, other = (make_toy(tmp_path / place / "toy") for place in ("one", "other"))
    file = write_json(tmp_path / "p.json", "abcdefgh")
    dataset = open_data([f"{one}:train", f"{other}:train"], (), "--data.train")
    with pytest.raises(
        InputError, match=r"one/toy/JPEGImages/a\.png and .*other/.*a\.png have the same id a in the files"
    ):
        build_proposals(dataset, ProposalConfig(files=(file,)))
    (other / "ImageSets/Main/test.txt").write_text("a\n")
    line = [*training(one), "--data.test", f"{other}:test", "--proposals.files", file]
    assert "have the same id a in the files" in sentence(ohem("train", tmp_path / "run", *line))
    assert not (tmp_path / "run").exists()
    assert ohem("train", tmp_path / "run", *line[:-1], str(write_mat_file(tmp_path / "p.mat", "abcdefgh"))).code == 2
    assert ohem("train", tmp_path / "run", *training(one, test="train"), *line[-2:]).code == 0


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


def test_a_text_is_no_list_of_methods() -> None:
    """Each letter of it would be skipped, and there would be no proposals."""
    with pytest.raises(InputError, match="there is no proposal method 'f': use one of fast, "):
        methods_of(ProposalConfig(mode="fast"))  # type: ignore[arg-type]


def test_the_digest_of_many_proposals_is_remembered(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_data([f"{data}:train"], (), "--data.train")
    config = ProposalConfig(mode=("fast", "fast"), folder=str(tmp_path), jobs=1)
    proposals = build_proposals(dataset, config)
    expected = digest_of_proposals(dataset.ids, proposals, 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "MANY", 6)
    assert digest_of_proposals(dataset.ids, proposals, 4) == expected
    (path,) = tmp_path.glob("*.safetensors")
    cached = Proposals.load(path)
    moved = {name: boxes[::-1] if name == "c" else boxes for name, boxes in cached.items()}

    def refuse(*_: object) -> None:
        raise AssertionError("boxes are read")

    with monkeypatch.context() as patch:
        patch.setattr(BoxFile, "at", refuse)
        assert digest_of_proposals(dataset.ids, build_proposals(dataset, config), 4) == expected
        for names, top in ((dataset.ids[::-1], 4), (dataset.ids, 5)):
            with pytest.raises(AssertionError, match="boxes are read"):
                digest_of_proposals(names, proposals, top)
    Proposals.from_boxes(moved, cached.digests, cached.metadata).save(path)
    assert digest_of_proposals(dataset.ids, build_proposals(dataset, config), 4) != expected
