"""Reading of images: the pixels that a viewer displays, for every kind of file, and refusal of damaged files."""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, UnidentifiedImageError

from ohem.data.transforms import image_size, read_image
from ohem.errors import InputError
from ohem.images.orientation import ORIENTATIONS, turn_boxes, turn_boxes_back, turn_pixels, turn_size
from ohem.images.read import read_header
from ohem.proposals.parallel import read_bgr
from tests.helpers.datasets import save_turned

HEIGHT, WIDTH = 40, 60
RAMP = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)


def pixels(path: Path) -> np.ndarray:
    """Returns the pixels of `read_image` as `[H, W, 3]`, after the checks that hold for any file."""
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert tuple(image.shape) == (3, *image_size(path)) == (3, HEIGHT, WIDTH)
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_kinds_are_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(COLOURS).save(path, lossless=True)
    np.testing.assert_array_equal(pixels(path), COLOURS)


@pytest.mark.parametrize(("mode", "suffix"), [("L", "jpg"), ("L", "png"), ("LA", "png"), ("1", "png"), ("P", "gif")])
def test_grey_is_the_same_in_all_channels(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RAMP).convert(mode).save(path)
    expected = RAMP if mode != "1" else np.asarray(Image.fromarray(RAMP).convert("1").convert("L"))
    for channel in pixels(path).transpose(2, 0, 1):
        np.testing.assert_allclose(channel, expected, atol=3 if suffix == "jpg" else 0)


def test_cmyk_is_not_inverted(tmp_path: Path) -> None:
    """Uses Pillow, which writes CMYK inverted with Adobe's marker, as Photoshop does."""
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(path, quality=95)
    assert b"Adobe" in path.read_bytes()
    np.testing.assert_allclose(pixels(path), np.broadcast_to([255, 0, 0], COLOURS.shape), atol=3)


def test_alpha_and_palette(tmp_path: Path) -> None:
    with_alpha = Image.fromarray(COLOURS)
    with_alpha.putalpha(Image.fromarray(RAMP))
    with_alpha.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(pixels(tmp_path / "alpha.png"), COLOURS)
    palette = Image.fromarray(COLOURS).quantize(16)
    for transparency in (3, bytes(range(16))):
        palette.save(tmp_path / "palette.png", transparency=transparency)
        np.testing.assert_array_equal(pixels(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(DEEP).save(path)
    np.testing.assert_array_equal(pixels(path), np.broadcast_to(np.rint(DEEP / 257)[..., None], COLOURS.shape))


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "image.png"
    colours = np.stack([DEEP, DEEP[::-1], 65535 - DEEP], axis=-1)
    cv2.imwrite(str(path), colours[..., ::-1])
    np.testing.assert_allclose(pixels(path), colours / 257, atol=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_and_size_are_upright_as_in_pillow(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"image.{suffix}"
    save_turned(COLOURS, path, orientation)
    header = read_header(path)
    assert header.orientation == orientation
    assert header.stored == COLOURS.shape[:2]
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert image_size(path) == expected.shape[:2]
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(read_bgr(path), expected[..., ::-1])


def test_an_orientation_behind_the_pixels_of_a_png_is_read(tmp_path: Path) -> None:
    """Checks a chunk that the format allows anywhere; Pillow decodes all pixels to find it there."""
    path = tmp_path / "image.png"
    save_turned(COLOURS, path, 6)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    before_end = len(data) - 12
    assert data.index(b"IDAT") > end
    path.write_bytes(data[:start] + data[end:before_end] + data[start:end] + data[before_end:])
    assert read_header(path) == ((HEIGHT, WIDTH), 6)
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(tmp_path: Path, value: int) -> None:
    save_turned(COLOURS, tmp_path / "image.png", value)
    assert read_header(tmp_path / "image.png").orientation == 1


@pytest.mark.parametrize("kept", range(0, 37, 3))
def test_damaged_exif_is_upright_and_no_warning(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[271], exif[274] = "maker of cameras", 6
    Image.fromarray(COLOURS).save(path, exif=exif.tobytes()[:kept])
    assert read_header(path) == ((HEIGHT, WIDTH), 1)
    assert pixels(path).shape == COLOURS.shape


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_boxes_turn_with_the_pixels_and_back(orientation: int, height: int, width: int, data: st.DataObject) -> None:
    """Paints a rectangle on the stored pixels and checks its turned box in the upright image, for each orientation."""
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    stored = np.zeros((height, width), np.uint8)
    stored[y1:y2, x1:x2] = 1
    upright = turn_pixels(stored, orientation)
    assert turn_size(stored.shape, orientation) == upright.shape
    boxes = np.array([[x1, y1, x2, y2]], np.float32)
    turned = turn_boxes(boxes, orientation, upright.shape)
    ys, xs = upright.nonzero()
    assert turned[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert turn_boxes_back(turned, orientation, upright.shape).tolist() == boxes.tolist()


@pytest.mark.parametrize("read", [read_image, image_size, read_bgr])
@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (60_000, 60_000)])
def test_images_over_the_limit_are_refused_by_their_header(tmp_path: Path, read, size: tuple[int, int]) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(COLOURS).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    said = f"large.png is too large: it has {size[0]} x {size[1]} pixels, and at most 100 million are read: reduce it"
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match=said):
        read(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_images_just_below_the_limit_are_read_without_a_warning_of_pillow(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 10_000)).save(path)
    assert image_size(path) == (10_000, 10_000)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("padded", [False, True], ids=["cut", "padded"])
def test_truncated_jpeg_is_refused(tmp_path: Path, options: dict, share: float, padded: bool) -> None:
    """Checks that the rest is not filled with grey, even where a broken download left zeros in its place."""
    path = tmp_path / "image.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    data = path.read_bytes()
    kept = int(len(data) * share)
    path.write_bytes(data[:kept] + bytes(len(data) - kept if padded else 0))
    with pytest.raises(InputError, match=r"image\.jpg is cut short or not an image .*: copy or download it again"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "gif"])
def test_other_truncated_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(COLOURS).save(path)
    data = path.read_bytes()
    for kept in range(0, len(data) - 30, 1 + len(data) // 50):
        path.write_bytes(data[:kept])
        with pytest.raises(InputError, match=rf"image\.{suffix} is cut short"):
            read_image(path)


def test_thumbnail_and_trailer_are_no_truncation(tmp_path: Path) -> None:
    """Checks images with end-of-image and start-of-scan markers in a thumbnail or trailer."""
    path = tmp_path / "image.jpg"
    Image.fromarray(COLOURS).save(path)
    data = path.read_bytes()
    thumbnail = b"\xff\xe2" + (len(data) + 2).to_bytes(2, "big") + data  # an application segment
    path.write_bytes(data[:2] + thumbnail + data[2:] + b"trailer" + bytes(50))
    assert pixels(path).shape == COLOURS.shape
    path.write_bytes(data[:2] + thumbnail + data[2:-2] + bytes(50))
    with pytest.raises(InputError, match="its end is missing"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_files_that_are_no_images_are_refused(tmp_path: Path, read) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"text\.jpg is cut short or not an image \(cannot identify image file\)"):
        read(tmp_path / "text.jpg")
    with pytest.raises(InputError, match=r"absent\.jpg cannot be opened \(No such file or directory\): put the image"):
        read(tmp_path / "absent.jpg")


def test_replaced_opener_of_images_that_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces Pillow's function as ultralytics does, for the whole process."""
    original = Image.open

    def replacement(file: BinaryIO) -> Image.Image:
        try:
            return original(file)
        except UnidentifiedImageError:
            import a_package_that_is_not_installed as missing

            return missing.open(file)

    monkeypatch.setattr(Image, "open", replacement)
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"text\.jpg is cut short or not an image \(cannot identify image file\)"):
        read_image(tmp_path / "text.jpg")


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(InputError, match="not whole numbers"):
        read_image(tmp_path / "image.tif")
