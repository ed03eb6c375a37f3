"""`ohem detect` draws each image before it reads the next, overwrites only its own results, and uses processes."""

import json
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ohem.config.schema import ProposalConfig
from ohem.errors import InputError
from ohem.evaluation import detect as module
from ohem.evaluation import detections_file
from ohem.evaluation.detect import detect_files
from ohem.io.locks import locked
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import make_toy, training
from tests.proposals.processes import child_processes, workers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns a run, and the folder of the images of its data."""
    folder = tmp_path_factory.mktemp("made")
    data = make_toy(folder / "toy")
    assert ohem("train", folder / "run", *training(data, test=None)).code == 0
    return folder / "run", data / "JPEGImages"


@pytest.fixture
def run(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture
def pictures(made: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """Returns copies of five images, one of which is a JPEG file."""
    shutil.copytree(made[1], tmp_path / "pictures")
    with Image.open(tmp_path / "pictures" / "b.png") as image:
        image.save(tmp_path / "pictures" / "b.jpg", quality=95)
    (tmp_path / "pictures" / "b.png").unlink()
    return [tmp_path / "pictures" / name for name in ("a.png", "b.jpg", "c.png", "d.png", "e.png")]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Makes few pixels enough for processes; returns a list of their numbers, and checks that all have ended."""
    numbers, before, real = [], child_processes(), module.proposals_in_order

    def spy(files: Any, method: Any, jobs: int) -> Any:
        numbers.append(jobs)
        return real(files, method, jobs)

    monkeypatch.setattr(module, "FEW_PIXELS", 0)
    monkeypatch.setattr(module, "proposals_in_order", spy)
    yield numbers
    assert not workers(before)


def listed(out: Path) -> list[str]:
    """Returns the names of the images in detections.json, which must be complete."""
    return [Path(entry["image"]).name for entry in json.loads((out / "detections.json").read_text())]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])


def test_a_picture_is_written_before_the_next_image_is_read(
    run: Path, pictures: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[Path] = []
    alive: list[weakref.ref[torch.Tensor]] = []
    real = module.read_image

    def spy(path: Path) -> torch.Tensor:
        assert capsys.readouterr().out.count("objects") == (1 if read else 0)
        if read:
            assert (out / f"{read[-1].stem}.jpg").exists()
            assert listed(out) == [path.name for path in read]
        assert sum(ref() is not None for ref in alive) <= 1
        read.append(path)
        image = real(path)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(module, "read_image", spy)
    detect_files(run, pictures, out, 0.5)
    assert read == pictures
    assert listed(out) == [path.name for path in pictures]
    assert sorted(content(out)) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "detections.json", "e.jpg"]


def test_detections_are_those_of_single_images(run: Path, pictures: list[Path], out: Path) -> None:
    detect_files(run, pictures, out, 0.5)
    for path in pictures:
        detect_files(run, [path], out / path.stem, 0.5)
    alone = [json.loads((out / path.stem / "detections.json").read_text())[0] for path in pictures]
    assert json.loads((out / "detections.json").read_text()) == alone


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt, SystemExit, OSError])
def test_whatever_stops_it_leaves_a_whole_list(
    run: Path, pictures: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Checks that the list also has the images that were not yet published."""
    monkeypatch.setattr(detections_file, "FIRST", 1)
    real = module.read_image

    def stop(path: Path) -> torch.Tensor:
        if path == pictures[3]:
            assert listed(out) == ["a.png"]
            raise error("no")
        return real(path)

    monkeypatch.setattr(module, "read_image", stop)
    monkeypatch.setattr(detections_file, "PUBLISH_SECONDS", 999)
    with pytest.raises(error):
        detect_files(run, pictures, out, 0.5)
    assert listed(out) == ["a.png", "b.jpg", "c.png"]
    assert sorted(content(out)) == ["a.jpg", "b.jpg", "c.jpg", "detections.json"]


def test_half_an_entry_is_not_published(tmp_path: Path) -> None:
    with detections_file.publishing(tmp_path / "detections.json") as entries:
        entries.append({"image": "a"})
        entries.next = 1e30
        entries.count = detections_file.FIRST
        entries.append({"image": "b"})
        assert listed(tmp_path) == ["a"]
        entries.file.write(b',\n{"image"')  # a signal that comes during a write
    assert listed(tmp_path) == ["a", "b"]
    assert list(content(tmp_path)) == ["detections.json"]


def test_what_a_killed_process_left_is_removed(run: Path, pictures: list[Path], out: Path) -> None:
    out.mkdir()
    for name in (".detections.json.77.tmp", ".detections.json.parts.tmp", ".detections.json.lock"):
        (out / name).touch()
    detect_files(run, pictures[:1], out, 0.5)
    assert sorted(content(out)) == ["a.jpg", "detections.json"]


def test_two_at_once_in_one_folder_are_refused(run: Path, pictures: list[Path], out: Path) -> None:
    out.mkdir()
    with locked(out / ".detections.json.lock", "the test"):
        assert f"the folder {out} is in use" in sentence(ohem("detect", run, pictures[0], "--out", out))


def test_a_picture_damaged_behind_its_header_stops_it_and_what_is_done_stays(
    run: Path, pictures: list[Path], out: Path
) -> None:
    damage(pictures[2])
    text = sentence(ohem("detect", run, *pictures, "--out", out))
    assert str(pictures[2]) in text
    assert listed(out) == ["a.png", "b.jpg"]


@pytest.mark.parametrize("kind", ["missing", "text", "folder"])
def test_what_is_no_picture_is_said_before_anything_is_computed(
    run: Path, pictures: list[Path], out: Path, kind: str
) -> None:
    bad = pictures[-1]
    bad.unlink()
    if kind == "text":
        bad.write_text("no picture")
    elif kind == "folder":
        bad.mkdir()
    assert str(bad) in sentence(ohem("detect", run, *pictures, "--out", out))
    assert not out.exists()


@pytest.mark.parametrize("kind", ["folder", "symbolic folder", "symbolic link", "hard link", "of another", "json"])
def test_input_is_never_overwritten(run: Path, pictures: list[Path], out: Path, tmp_path: Path, kind: str) -> None:
    folder, line = pictures[0].parent, list(pictures)
    if kind == "folder":
        out = folder
    elif kind == "symbolic folder":
        out.symlink_to(folder, target_is_directory=True)
    elif kind == "of another":  # c.png would be written as c.jpg, which is read as well
        out.mkdir()
        shutil.copy(pictures[1], out / "c.jpg")
        (tmp_path / "x").mkdir()
        shutil.copy(pictures[2], tmp_path / "x" / "c.png")
        (out / "z.jpg").symlink_to(out / "c.jpg")
        line = [tmp_path / "x" / "c.png", out / "z.jpg"]
    elif kind == "json":
        out.mkdir()
        line.append(Path(shutil.copy(pictures[0], out / "detections.json")))
    else:
        out.mkdir()
        (os.link if kind == "hard link" else os.symlink)(pictures[1], out / "b.jpg")
    before = content(folder), content(out)
    assert "would be overwritten" in sentence(ohem("detect", run, *line, "--out", out))
    assert (content(folder), content(out)) == before


def test_files_of_others_are_not_overwritten_and_its_own_are(run: Path, pictures: list[Path], out: Path) -> None:
    shutil.copytree(pictures[0].parent, out)
    before = content(out)
    assert f"{out / 'b.jpg'} exists and is no picture" in sentence(ohem("detect", run, *pictures, "--out", out))
    assert content(out) == before
    (out / "b.jpg").unlink()
    for text in (
        '[{"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
        "{}",
        "null",
        "[",
        "thesis",
    ):
        (out / "detections.json").write_text(text)
        assert "detections.json is no file of `ohem detect`" in sentence(ohem("detect", run, *pictures, "--out", out))
        assert (out / "detections.json").read_text() == text
    (out / "detections.json").unlink()
    assert ohem("detect", run, *pictures, "--out", out).code == 0
    (out / "detections.json").unlink()  # as if it was killed before the list was published
    assert ohem("detect", run, *pictures, "--out", out).code == 0
    assert ohem("detect", run, *pictures[:2], "--out", out).code == 0
    assert listed(out) == ["a.png", "b.jpg"]


def test_pictures_of_one_name_are_refused(run: Path, pictures: list[Path], out: Path) -> None:
    other = pictures[0].with_suffix(".bmp")
    with Image.open(pictures[0]) as image:
        image.save(other)
    assert "has the same name as another image" in sentence(ohem("detect", run, *pictures, other, "--out", out))
    assert not out.exists()


def test_the_highest_score_is_reported_where_no_object_is_drawn(run: Path, pictures: list[Path], out: Path) -> None:
    result = ohem("detect", run, pictures[0], "--out", out, "--score", 1)
    (entry,) = json.loads((out / "detections.json").read_text())
    highest = max(entry["scores"])
    assert 0 < highest < 1
    assert f"0 objects of score 1.0 or more; the highest score is {highest:.2f}: lower --score" in result.out


# Several processes of selective search


def test_pictures_list_and_lines_are_those_of_one_process(
    run: Path, pictures: list[Path], out: Path, begun: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for jobs in (1, 2):
        detect_files(run, pictures, out, 0.5, jobs=jobs)
        results.append((capsys.readouterr(), content(out)))
        shutil.rmtree(out)
    assert results[0] == results[1]
    assert begun == [2]


def test_a_damaged_image_stops_it_in_its_place(run: Path, pictures: list[Path], out: Path, begun: list[int]) -> None:
    for path in pictures[2::2]:
        damage(path)
    text = sentence(ohem("detect", run, *pictures, "--out", out, "--jobs", 2))
    assert text.startswith(f"{pictures[2]} is cut short")
    assert listed(out) == ["a.png", "b.jpg"]
    assert sorted(content(out)) == ["a.jpg", "b.jpg", "detections.json"]
    assert begun == [2]


def test_a_killed_process_ends_in_a_sentence(
    run: Path, pictures: list[Path], out: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills the processes, as the system does when there is not enough memory."""
    before, real, killed = child_processes(), module.save_picture, set[int]()

    def save(*arguments: Any) -> None:
        real(*arguments)
        if not killed:  # later there are also processes by which joblib ends the workers
            killed.update(workers(before))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(module, "save_picture", save)
    with pytest.raises(InputError, match=r"a process that makes proposals was killed, .*: give fewer --jobs$"):
        detect_files(run, pictures, out, 0.5, jobs=2)
    done = listed(out)
    assert 1 <= len(done) <= 4
    assert done == [path.name for path in pictures[: len(done)]]


def test_no_process_is_begun_where_it_saves_no_time(
    run: Path, pictures: list[Path], out: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    detect_files(run, pictures[:1], out, 0.5)
    detect_files(run, pictures[:2], out, 0.5, jobs=1)
    assert len(list(module._with_proposals(pictures, ProposalConfig(mode=("none",)), 2))) == 5
    monkeypatch.undo()
    monkeypatch.setattr(module, "proposals_in_order", None)
    detect_files(run, pictures, out, 0.5, jobs=2)
    assert begun == []


def test_no_jobs_are_refused(run: Path, pictures: list[Path], out: Path) -> None:
    assert "--jobs 0 does nothing" in sentence(ohem("detect", run, *pictures, "--out", out, "--jobs", 0))
    assert not (out).exists()
