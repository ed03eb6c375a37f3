"""Generation of the proposals of a data set: results, cache, resumed runs and refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import joblib
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ohem.errors import InputError
from ohem.proposals import generate as module
from ohem.proposals import parallel
from ohem.proposals.generate import cache_path, generate, is_generated
from ohem.proposals.parallel import read_bgr
from ohem.proposals.selective_search import SelectiveSearch, selective_search
from ohem.proposals.store import write_proposals
from tests.proposals.conftest import picture


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Returns the list of the ids of images that are computed in this process (jobs=1)."""
    seen: list[str] = []
    real = parallel.propose

    def spy(image_id, *rest):
        seen.append(image_id)
        return real(image_id, *rest)

    monkeypatch.setattr(parallel, "propose", spy)
    return seen


def test_in_the_order_of_the_images_and_then_from_the_cache(images, path, calls):
    made = generate(images, path, jobs=1, progress=False)
    assert list(made) == calls == list(images)
    for name, file in images.items():
        np.testing.assert_array_equal(made[name], selective_search(cv2.imread(str(file))))
    assert {k: v for k, v in made.metadata.items() if k != "opencv"} == {
        "method": "selective search",
        "mode": "fast",
        "seed": 0,
        "width": 0,
    }
    assert made.metadata["opencv"] == cv2.__version__
    assert list(path.parent.iterdir()) == [path]

    again = generate(images, path, jobs=1, progress=False)
    assert len(calls) == len(images)
    np.testing.assert_array_equal(again["a"], made["a"])


def test_the_same_file_whatever_the_number_of_processes(images, path):
    generate(images, path, jobs=1, progress=False)
    generate(images, path.with_name("two.safetensors"), jobs=2, progress=False)
    assert path.with_name("two.safetensors").read_bytes() == path.read_bytes()


def test_the_callers_joblib_backend_is_used_and_threads_do_not_mix_the_random_numbers(images, path, calls):
    generate(images, path, jobs=1, progress=False)
    del calls[:]
    with joblib.parallel_config(backend="threading"):
        generate(images, path.with_name("threads.safetensors"), jobs=3, progress=False)
    assert sorted(calls) == sorted(images)  # they were computed in this process, where the spy sees them
    assert path.with_name("threads.safetensors").read_bytes() == path.read_bytes()


def test_a_killed_run_is_resumed(images, path, calls, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ohem.proposals import generate as module, parallel\n"
        "real, module.PART_SECONDS = parallel.propose, 0\n"
        "parallel.propose = lambda i, *rest: time.sleep(999) if i == 'b' else real(i, *rest)\n"
        f"images = { ({k: str(v) for k, v in images.items()})!r}\n"
        f"module.generate({{k: Path(v) for k, v in images.items()}}, Path({str(path)!r}), jobs=1)\n"
    )
    parts = path.with_name("train.safetensors.parts")
    with subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("*.safetensors"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    assert not path.exists()
    generate(images, path, jobs=1, progress=False)
    assert calls == ["b", "e", "c"]
    assert not parts.exists()

    generate(images, path.with_name("straight.safetensors"), jobs=1, progress=False)
    assert path.with_name("straight.safetensors").read_bytes() == path.read_bytes()


def test_an_unreadable_image_is_named_and_the_others_are_kept(images, path, calls):
    whole = images["b"].read_bytes()
    images["b"].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.png is cut short or not an image"):
        generate(images, path, jobs=1, progress=False)
    assert calls == ["d", "a", "f", "b"]
    images["b"].write_bytes(whole)
    assert len(generate(images, path, jobs=1, progress=False)) == 6
    assert calls == ["d", "a", "f", "b", "b", "e", "c"]


def test_an_unreadable_image_is_named_by_a_worker_process(images, path):
    images["b"].write_text("no image")
    with pytest.raises(InputError, match=r"b\.png is cut short or not an image"):
        generate(images, path, jobs=2, progress=False)


def interrupted(images, path, **settings):
    """Stops a run before the last image, so that its parts stay; returns the id of the last image."""
    (last, file), *_ = reversed(images.items())
    aside = file.rename(file.with_suffix(".aside"))
    file.write_text("no image")
    with pytest.raises(InputError):
        generate(images, path, jobs=1, progress=False, **settings)
    aside.rename(file)
    return last


def write_format_1(path, ids, seed):
    """Writes a cache in the format that had no digests of images."""
    head = {"format": 1, "metadata": {"method": "selective search", "mode": "fast", "seed": seed}, "ids": ids}
    tensors = {
        "boxes": np.zeros((0, 4), np.float32),
        "offsets": np.zeros(len(ids) + 1, np.int64),
        "image_bytes": np.ones(len(ids), np.int64),
    }
    save_file(tensors, path, {"ohem.proposals": json.dumps(head)})


def test_parts_of_changed_images_are_made_again(images, path, calls):
    last = interrupted(images, path)
    Image.fromarray(picture(99, height=90)).save(images["a"])
    del calls[:]
    made = generate(images, path, jobs=1, progress=False)
    assert calls == ["a", last]
    np.testing.assert_array_equal(made["a"], selective_search(cv2.imread(str(images["a"]))))


def test_parts_of_other_settings_are_refused(images, path):
    interrupted(images, path, method=SelectiveSearch(seed=1))
    with pytest.raises(InputError, match=r"parts.*made with seed 1, want 0: delete"):
        generate(images, path, jobs=1, progress=False)


def test_damaged_parts_are_made_again_and_counted(images, path, calls):
    interrupted(images, path)
    for file in path.with_name("train.safetensors.parts").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    del calls[:]
    with pytest.warns(UserWarning, match="1 damaged files of unfinished proposals are ignored"):
        generate(images, path, jobs=1, progress=False)
    assert calls == list(images)


def test_a_cache_of_other_settings_is_refused_and_kept(images, path):
    generate(images, path, jobs=1, progress=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match="made with mode fast, want quality"):
        generate(images, path, method=SelectiveSearch("quality"), progress=False)
    with pytest.raises(InputError, match="made with seed 0, want 5"):
        generate(images, path, method=SelectiveSearch(seed=5), progress=False)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_width_is_a_setting(images, path):
    made = generate(images, path, jobs=1, progress=False, method=SelectiveSearch(width=30))
    for name, file in images.items():
        np.testing.assert_array_equal(made[name], selective_search(cv2.imread(str(file)), width=30))
    with pytest.raises(InputError, match=r"made with width 30, want 500: .* or give --width 30"):
        generate(images, path, progress=False, method=SelectiveSearch(width=500))


@pytest.mark.parametrize("width", [0, 63, 64, 500])
def test_proposals_of_before_there_was_a_width_serve_where_no_image_is_wider(images, path, calls, width):
    """The images are 64 pixels wide."""
    made = generate(images, path, jobs=1, progress=False)
    metadata = {key: value for key, value in made.metadata.items() if key != "width"}
    write_proposals(path, made, made.digests, metadata)
    del calls[:]
    method = SelectiveSearch(width=width)
    if width == 63:
        with pytest.raises(InputError, match="made with width 0, want 63"):
            generate(images, path, jobs=1, progress=False, method=method)
    else:
        generate(images, path, jobs=1, progress=False, method=method)
        assert is_generated(images, path, method)
    assert calls == []


def test_a_new_image_is_added_and_one_that_is_gone_stays(images, path, calls):
    first = {name: images[name] for name in "daf"}
    generate(first, path, jobs=1, progress=False)
    del calls[:]
    later = {name: images[name] for name in "fbd"}
    assert not is_generated(later, path)
    made = generate(later, path, jobs=1, progress=False)
    assert is_generated(later, path)
    assert calls == ["b"]
    assert list(made) == ["f", "b", "d", "a"]
    for name in "fbda":
        np.testing.assert_array_equal(made[name], selective_search(cv2.imread(str(images[name]))))
    generate(first, path, jobs=1, progress=False)
    assert calls == ["b"]
    assert list(path.parent.iterdir()) == [path]


def test_what_is_added_later_makes_the_same_file(images, path):
    generate({"a": images["a"], "e": images["e"]}, path, jobs=1, progress=False)
    generate(images, path, jobs=1, progress=False)
    generate(images, path.with_name("straight.safetensors"), jobs=1, progress=False)
    assert path.with_name("straight.safetensors").read_bytes() == path.read_bytes()


def test_an_image_of_equal_size_and_time_is_noticed(images, path, calls):
    """Checks that its proposals alone are made again, with one note."""
    before = generate(images, path, jobs=1, progress=False)["a"]
    old = images["a"].stat()
    content = bytearray((images["a"]).read_bytes())
    Image.fromarray(picture(99)).save(images["a"], format="BMP")
    Image.fromarray(picture(98)).save(images["b"], format="BMP")
    generate(
        {"b": images["b"]}, path.with_name("other.safetensors"), jobs=1, progress=False
    )  # its digest is kept in memory
    assert images["a"].stat().st_size == images["b"].stat().st_size
    stat = images["b"].stat()
    images["b"].write_bytes(images["a"].read_bytes())
    os.utime(images["b"], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    images["a"].write_bytes(content)
    os.utime(images["a"], ns=(old.st_atime_ns, old.st_mtime_ns))
    del calls[:]
    with pytest.warns(UserWarning, match=r"1 image files have changed.*the first is .*b\.png") as warned:
        made = generate(images, path, jobs=1, progress=False)
    assert len(warned) == 1
    assert calls == ["b"]
    np.testing.assert_array_equal(made["b"], selective_search(picture(99)[..., ::-1].copy()))
    np.testing.assert_array_equal(made["a"], before)


def test_a_cache_in_the_earlier_format_is_made_again_with_a_note(images, path, calls):
    path.parent.mkdir()
    write_format_1(path, list(images), seed=0)
    assert not is_generated(images, path)
    with pytest.warns(UserWarning, match=f"{path.name}: the proposals are in an earlier format") as warned:
        generate(images, path, jobs=1, progress=False)
    assert len(warned) == 1
    assert calls == list(images)
    assert is_generated(images, path)

    write_format_1(path, list(images), seed=4)
    before = path.read_bytes()
    with pytest.raises(InputError, match="made with seed 4, want 0"):
        generate(images, path, jobs=1, progress=False)
    assert path.read_bytes() == before


def test_a_cache_serves_without_opencv(images, path, monkeypatch):
    generate(images, path, jobs=1, progress=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert len(generate(images, path, progress=False)) == 6


def test_an_absent_image_is_named(images, path):
    images["b"].unlink()
    with pytest.raises(InputError, match=r"b\.png: no image for id b"):
        generate(images, path, progress=False)


def test_an_unknown_mode_is_refused(images, path):
    with pytest.raises(InputError, match="no mode 'slow'"):
        generate(images, path, method=SelectiveSearch("slow"), progress=False)  # type: ignore[arg-type]


def test_an_image_without_proposals_and_no_image_at_all(tmp_path, path):
    Image.new("RGB", (2, 2)).save(tmp_path / "tiny.png")
    made = generate({"tiny": tmp_path / "tiny.png"}, path, jobs=1, progress=False)
    assert made["tiny"].shape == (0, 4)
    assert len(generate({}, path.with_name("none.safetensors"), progress=False)) == 0


def test_progress_is_on_standard_error_with_count_and_rate(images, path, capsys):
    generate(images, path, jobs=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "6 of 6" in err
    assert "images/s" in err


def test_the_cache_is_with_the_data(tmp_path):
    cache = cache_path(tmp_path, "trainval", SelectiveSearch("quality"))
    assert cache == tmp_path / "Proposals" / "trainval.selective-search-quality.safetensors"


def test_read_only_data_have_their_cache_in_the_users_folder(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="cannot be written: its proposals are kept in"):
        path = cache_path(tmp_path / "one" / "VOC2007", "test")
    assert path.parent.parent == tmp_path / "cache" / "ohem"
    assert path.parent.name.startswith("VOC2007-")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert cache_path(tmp_path / "two" / "VOC2007", "test") != path

    path.parent.mkdir(parents=True)
    path.touch()
    assert cache_path(tmp_path / "one" / "VOC2007", "test") == path  # without a second warning

    shipped = tmp_path / "one" / "VOC2007" / "Proposals" / path.name
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    assert cache_path(tmp_path / "one" / "VOC2007", "test") == shipped


def test_any_kind_of_image_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    blue = Image.new("RGB", (30, 20), (0, 0, 255))
    blue.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    blue.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.new("L", (30, 20), 128).save(tmp_path / "grey.png")
    Image.fromarray(np.full((20, 30), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    blue.convert("RGBA").save(tmp_path / "alpha.png")
    for name, bgr in [
        ("turned.jpg", (255, 0, 0)),
        ("cmyk.jpg", (255, 0, 0)),
        ("grey.png", (128, 128, 128)),
        ("deep.png", (128, 128, 128)),
        ("alpha.png", (255, 0, 0)),
    ]:
        pixels = read_bgr(tmp_path / name)
        assert pixels.shape == (20, 30, 3)
        np.testing.assert_allclose(pixels[10, 10], bgr, atol=2, err_msg=name)


def test_a_truncated_jpeg_is_refused(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(InputError, match=r"cut\.jpg is cut short or not an image .*: copy or download it again"):
        read_bgr(tmp_path / "cut.jpg")
