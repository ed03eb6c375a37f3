"""Proposals of a data set: the same whatever happens on the way, nothing computed twice, nothing refused silently."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import joblib
import numpy as np
import pytest
from PIL import Image

from ohem.errors import InputError
from ohem.proposals import generate as module
from ohem.proposals.generate import cache_path, generate
from ohem.proposals.selective_search import selective_search
from ohem.proposals.worker import read_bgr
from tests.proposals.conftest import picture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Proposals" / "train.safetensors"


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Ids of the images that are computed in this process (jobs=1)."""
    seen: list[str] = []
    real = module.propose

    def spy(image_id, *rest):
        seen.append(image_id)
        return real(image_id, *rest)

    monkeypatch.setattr(module, "propose", spy)
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
    assert sorted(calls) == sorted(images)  # in this process, or the spy would have seen nothing
    assert path.with_name("threads.safetensors").read_bytes() == path.read_bytes()


def test_a_killed_run_is_resumed(images, path, calls, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from ohem.proposals import generate as module\n"
        "real, module.PART_SECONDS = module.propose, 0\n"
        "module.propose = lambda i, *rest: time.sleep(999) if i == 'b' else real(i, *rest)\n"
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
    """A run that stops before the last image and leaves its parts."""
    (last, file), *_ = reversed(images.items())
    aside = file.rename(file.with_suffix(".aside"))
    file.write_text("no image")
    with pytest.raises(InputError):
        generate(images, path, jobs=1, progress=False, **settings)
    aside.rename(file)
    return last


def test_parts_of_changed_images_are_made_again(images, path, calls):
    last = interrupted(images, path)
    Image.fromarray(picture(99, height=90)).save(images["a"])
    del calls[:]
    made = generate(images, path, jobs=1, progress=False)
    assert calls == ["a", last]
    np.testing.assert_array_equal(made["a"], selective_search(cv2.imread(str(images["a"]))))


def test_parts_of_other_settings_are_refused(images, path):
    interrupted(images, path, seed=1)
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


def test_a_cache_of_other_settings_or_images_is_refused_and_kept(images, path):
    generate(images, path, jobs=1, progress=False)
    before = path.read_bytes()
    with pytest.raises(InputError, match="made with mode fast, want quality"):
        generate(images, path, mode="quality", progress=False)
    with pytest.raises(InputError, match="made with seed 0, want 5"):
        generate(images, path, seed=5, progress=False)
    with pytest.raises(InputError, match="x is not among its 6 ids"):
        generate({**images, "x": images["a"]}, path, progress=False)
    Image.fromarray(picture(99, height=90)).save(images["a"])
    with pytest.raises(InputError, match="a was a file of"):
        generate(images, path, progress=False)
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
        generate(images, path, mode="slow", progress=False)  # type: ignore[arg-type]


def test_an_image_without_proposals_and_no_image_at_all(tmp_path, path):
    Image.new("RGB", (2, 2)).save(tmp_path / "tiny.png")
    made = generate({"tiny": tmp_path / "tiny.png"}, path, jobs=1, progress=False)
    assert made["tiny"].shape == (0, 4)
    assert len(generate({}, path.with_name("none.safetensors"), progress=False)) == 0


def test_progress_is_on_standard_error_with_count_and_rate(images, path, capsys):
    generate(images, path, jobs=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "6/6" in err
    assert "images/s" in err


def test_the_cache_is_beside_the_data(tmp_path):
    beside = cache_path(tmp_path, "trainval", "quality")
    assert beside == tmp_path / "Proposals" / "trainval.selective-search-quality.safetensors"


def test_read_only_data_have_their_cache_in_the_users_folder(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="cannot be written: its proposals go to"):
        path = cache_path(tmp_path / "one" / "VOC2007", "test")
    assert path.parent.parent == tmp_path / "cache" / "ohem"
    assert path.parent.name.startswith("VOC2007-")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert cache_path(tmp_path / "two" / "VOC2007", "test") != path

    path.parent.mkdir(parents=True)
    path.touch()
    assert cache_path(tmp_path / "one" / "VOC2007", "test") == path  # and no warning: it is no news

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
