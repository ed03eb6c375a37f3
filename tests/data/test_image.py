"""`read_image` gives the pixels a person sees, whatever the file's kind; damaged files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ohem.data.image import image_size, read_image
from ohem.errors import InputError

HEIGHT, WIDTH = 40, 60
RAMP = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)


def pixels(path: Path) -> np.ndarray:
    """What `read_image` gives, as `[H, W, 3]`, after the checks that hold for any file."""
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
    """Pillow writes CMYK inverted with Adobe's marker, as Photoshop does."""
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


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[274] = 6  # orientation: to be turned by 90 degrees
    Image.fromarray(np.stack([RAMP] * 3, axis=-1)).save(path, exif=exif, quality=95)
    np.testing.assert_allclose(pixels(path)[..., 0], RAMP, atol=3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("padded", [False, True], ids=["cut", "padded"])
def test_truncated_jpeg_is_refused(tmp_path: Path, options: dict, share: float, padded: bool) -> None:
    """Not filled with grey, not even where a broken download left zeros in place of the rest."""
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
    """Their end-of-image and start-of-scan markers are not the picture's."""
    path = tmp_path / "image.jpg"
    Image.fromarray(COLOURS).save(path)
    data = path.read_bytes()
    thumbnail = b"\xff\xe2" + (len(data) + 2).to_bytes(2) + data  # an application segment
    path.write_bytes(data[:2] + thumbnail + data[2:] + b"trailer" + bytes(50))
    assert pixels(path).shape == COLOURS.shape
    path.write_bytes(data[:2] + thumbnail + data[2:-2] + bytes(50))
    with pytest.raises(InputError, match="its end is missing"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_what_is_no_image_is_refused(tmp_path: Path, read) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(InputError, match=r"text\.jpg is cut short or not an image \(cannot identify image file\)"):
        read(tmp_path / "text.jpg")
    with pytest.raises(InputError, match=r"absent\.jpg cannot be opened \(No such file or directory\): put the image"):
        read(tmp_path / "absent.jpg")


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(InputError, match="not whole numbers"):
        read_image(tmp_path / "image.tif")
